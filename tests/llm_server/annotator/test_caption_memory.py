"""What a caption costs in the annotator's process: bytes of resident memory, measured in a process of its own."""

import subprocess
import sys

from cluster.verbs.bench import CHECKOUT

NUM = 200_000
LENGTH = 50
"""Letters of a caption, as of NetHack's messages."""
LIMIT_BYTES = 240
"""By far less than what strings and dictionaries would take (450); measured: 180 to 190."""
PROGRAM = f"""
import ctypes, gc, re
from actors.captions import caption_id
from configs.annotation_schema import RewardModelConfig
from llm_server.annotation import JudgedCaption, Judgement, Status
from llm_server.annotator.caption_book import CaptionBook
from reward_models.retrieval import RetrievalModel

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return 1024 * int(re.search(r"Rss:\\s+(\\d+)", open("/proc/self/smaps_rollup").read())[1])

def fill(first, number):
    for start in range(first, first + number, 200):
        texts = {{caption_id(text): text for n in range(start, start + 200) for text in [str(n).rjust({LENGTH}, "x")]}}
        book.take_report(texts, dict.fromkeys(texts, 1), "0.0", start, start)
    while asked := book.next_batch(512):
        yes = Judgement(status=Status.OK, probability=0.7, answer_mass=1.0)
        model.learn(book.record([JudgedCaption(caption=caption, judgement=yes) for caption in asked]))

book, model = CaptionBook(1_000_000, 200_000), RetrievalModel(RewardModelConfig())
fill(0, 2000)
before = resident()
fill(2000, {NUM})
assert len(book) == 2000 + {NUM} and book.metrics()["annotations_pending"] == 0
print((resident() - before) / {NUM})
"""


def test_a_labelled_caption_takes_a_few_hundred_bytes_text_included() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert LENGTH < float(done.stdout) < LIMIT_BYTES
