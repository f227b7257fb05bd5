"""The packaged model writes: the same for the same seed, and beside judgements."""

import dataclasses
import threading
import time

import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.engines.building import build_engine
from llm_server.engines.engine import PROBE
from llm_server.writing.answer_text import parsed_answer
from llm_server.writing.loading import load_brief
from llm_server.writing.sampling import SLICE_TOKENS, Turns

BRIEF = load_brief("suggest_goals")
STATE = "Healthy. On the first level. A closed door."
WAIT_S = 120.0


@pytest.fixture
def writer(smollm2, rubric):
    """The shared model, as no other test closes it."""
    return smollm2.under(rubric)


def test_closing_one_rubrics_engine_ends_no_other_ones_writing(writer, rubric):
    writer.under(rubric).close()
    (written,) = writer.write(dataclasses.replace(BRIEF, max_tokens=2), STATE, [1])
    assert written.tokens


def test_the_same_seed_writes_the_same_whatever_is_written_with_it_and_another_seed_something_else(writer):
    warm = dataclasses.replace(BRIEF, temperature=1.0, max_tokens=12)
    alone = writer.write(warm, STATE, [5])
    together = writer.write(warm, STATE, [1, 5, *range(10, 18)])
    assert together[1] == alone[0]
    assert len({written.text for written in together}) > 5
    assert all(0 < written.tokens <= 12 and "\n" not in written.text for written in together)


def test_without_temperature_the_likeliest_tokens_are_written_as_a_plain_loop_does(writer):
    brief = dataclasses.replace(BRIEF, temperature=0.0, max_tokens=8)
    (written,) = writer.write(brief, STATE, [1])
    before, after = brief.question("completion").completion_prompt()
    tokenizer, model = writer._tokenizer, writer._model
    tokens = tokenizer(f"{before} {STATE}{after}", return_tensors="pt")
    said = model.generate(**tokens, max_new_tokens=8, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    assert tokenizer.decode(said).split("\n")[0] == written.text
    assert "door" in parsed_answer(brief, written.text, is_cut=written.is_cut)


def test_a_text_that_is_longer_than_the_model_reads_is_not_asked(writer):
    brief = load_brief("relabel_goals")
    assert writer.write(brief, "- x" + "\n- \u0130\u2126" * 6000, [1]) == [("", 0, False)]


def test_a_judgement_that_is_asked_during_a_writing_waits_for_one_slice(writer):
    long = dataclasses.replace(BRIEF, temperature=1.5, max_tokens=3 * SLICE_TOKENS)
    writer.write(dataclasses.replace(long, max_tokens=1), STATE, [1])  # its prefix is computed

    def waited_s():
        began = time.monotonic()
        writer.score([PROBE])
        return time.monotonic() - began

    alone_s = max(waited_s() for _ in range(3))
    thread = threading.Thread(target=writer.write, args=(long, STATE, range(2)))
    thread.start()
    waits = [waited_s() for _ in range(3) if thread.is_alive()]
    thread.join(WAIT_S)
    # What a judgement takes on this machine is added, because it may be busy.
    assert waits
    assert min(waits) < 0.5 + 2 * alone_s


def test_a_turn_comes_to_each_thread_in_the_order_of_arrival():
    turns, order, at_lock = Turns(), [], threading.Semaphore(0)

    def take(name):
        at_lock.release()
        with turns:
            order.append(name)

    threads = []
    with turns:
        for name in range(4):
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            assert at_lock.acquire(timeout=WAIT_S)
            while turns._next < name + 2:
                time.sleep(0.001)
        assert order == []
    for thread in threads:
        thread.join(WAIT_S)
    assert order == [0, 1, 2, 3]


@pytest.mark.slow
def test_closing_ends_a_writing_after_its_slice(rubric):
    engine = build_engine(ServiceConfig(torch_threads=0), rubric)
    engine.write(dataclasses.replace(BRIEF, max_tokens=1), STATE, [1])
    errors = []

    def write():
        try:
            engine.write(dataclasses.replace(BRIEF, max_tokens=4000, temperature=2.0), STATE, range(64))
        except RuntimeError as error:
            errors.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.5)
    engine.close()
    writer.join(WAIT_S)
    assert errors == ["closed before everything was written"]
