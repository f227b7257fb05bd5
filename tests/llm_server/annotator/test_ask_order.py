"""The next captions are those that sorting all pending ones would give, whatever happened in between."""

import numpy as np
import pytest

from llm_server.annotation import Caption, JudgedCaption, Judgement, Status
from llm_server.annotator import ask_order
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.caption_columns import CaptionState


def first_by_sorting(book: CaptionBook, num: int) -> list[int]:
    pending = np.flatnonzero(book._column("state") == CaptionState.PENDING)
    ids, priorities = book._rows.ids[pending], book._log_priorities(pending)
    return ids[np.lexsort((ids, -priorities))][:num].tolist()


@pytest.mark.parametrize("policy", ["recency_frequency", "frequency", "uncertainty"])
@pytest.mark.parametrize("max_captions", [150, 10_000])
def test_what_is_handed_out_is_the_head_of_all_pending_captions_sorted(policy, max_captions, monkeypatch):
    monkeypatch.setattr(ask_order, "PICKED", 12)
    rng = np.random.default_rng(0)
    book = CaptionBook(max_captions, 50, policy=policy)
    asked: list[list[Caption]] = []
    for step in range(600):
        what = rng.integers(8)
        if what < 3:  # known captions become more urgent, or new ones come; a few without their texts yet
            seen = rng.integers(1, 50 + 2 * step, 6).tolist()
            texts = {number: f"caption {number}" for number in seen[1:]}
            book.take_report(texts, {number: int(rng.integers(1, 4)) for number in seen}, "0.0", step, step)
        elif what == 3 and asked:
            book.put_back(asked.pop(int(rng.integers(len(asked)))))
        elif what == 4 and asked:
            judgement = Judgement(status=Status.OK, probability=0.5, answer_mass=1.0)
            book.record([JudgedCaption(caption=caption, judgement=judgement) for caption in asked.pop()])
        elif what == 5 and step % 3 == 0:
            ids = book.ranked()[0]
            book.note_margins(ids, rng.normal(size=len(ids)))
        elif what == 6 and step % 50 == 0:
            book.forget_answers()
        else:
            num = int(rng.integers(1, 9))
            wanted = first_by_sorting(book, num)
            asked.append(book.next_batch(num))
            assert [caption.id for caption in asked[-1]] == wanted, step
    assert sum(map(len, asked)) > 100


def test_few_captions_are_looked_at_for_a_batch():
    book = CaptionBook(100_000, 50)
    for number, start in enumerate(range(1, 40_001, 1000)):
        book.take_report(dict.fromkeys(range(start, start + 1000), "text"), {start: 1}, "0.0", number, number)
    looked_at = []
    priorities = book._log_priorities
    book._log_priorities = lambda rows: looked_at.append(len(rows)) or priorities(rows)
    for _ in range(100):
        assert len(book.next_batch(32)) == 32
    assert sum(looked_at) < 2 * 40_000, "all of them once, then those picked"
