"""The writing desk: what is asked of the engine, what of the store, and what is refused."""

import threading
import time

import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.annotation import Status, Written
from llm_server.engines.building import build_engine
from llm_server.service.pending import JudgeBusyError, JudgeClosedError, JudgeFailedError
from llm_server.service.store import JudgementStore
from llm_server.writing.desk import MAX_NUM, MAX_PENDING_REQUESTS, WritingDesk
from llm_server.writing.loading import load_brief
from tests.llm_server.gated_engine import GatedEngine

BRIEF = load_brief("suggest_goals")
STATE = {"state": b"A door."}
WAIT_S = 20.0


class WritingEngine(GatedEngine):
    """Writes a goal that names its seed; `said` overrides it."""

    writes = True

    def __init__(self, said=None):
        super().__init__()
        self.said, self.seeds = said, []

    def write(self, brief, text, seeds):
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        self.seeds += seeds
        if isinstance(self.said, Exception):
            raise self.said
        return [Written(f"goal {seed}", 3) if self.said is None else self.said for seed in seeds]


@pytest.fixture
def desk(rubric, tmp_path):
    made = []

    def make(engine, store=None, max_bytes=64):
        made.append(WritingDesk(engine, rubric, store, max_bytes))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def store(tmp_path):
    made = JudgementStore(tmp_path / "store.sqlite")
    yield made
    made.close()


def test_the_same_seed_gives_the_same_writings_whatever_their_number(desk):
    engine = WritingEngine()
    made = desk(engine)
    three, two, other = (made.write(BRIEF, STATE, num, seed) for num, seed in ((3, 5), (2, 5), (3, 6)))
    assert three[:2] == two
    assert len({writing.text for writing in three + other}) == 6
    assert all(0 <= seed < 2**31 for seed in engine.seeds)


def test_what_the_store_holds_is_not_written_again(desk, store, tmp_path):
    engine = WritingEngine()
    made = desk(engine, store)
    first = made.write(BRIEF, STATE, 2, 2**64 - 1)
    more = made.write(BRIEF, STATE, 3, 2**64 - 1)
    assert [writing.cached for writing in more] == [True, True, False]
    assert [writing.text for writing in more[:2]] == [writing.text for writing in first]
    assert len(engine.seeds) == 3
    other = JudgementStore(tmp_path / "store.sqlite")  # as after a restart
    assert [writing.cached for writing in desk(engine, other).write(BRIEF, STATE, 3, 2**64 - 1)] == [True] * 3
    other.close()
    for fields, brief, seed in ((STATE, BRIEF, 1), ({"state": b"A box."}, BRIEF, 0), (STATE, None, 0)):
        brief = brief or load_brief("decompose_task")
        fields = fields if brief is BRIEF else {"task": b"A door."}
        assert not made.write(brief, fields, 1, seed)[0].cached
    assert not made.write(BRIEF, STATE, 1, 2**64 - 1, bypass_store=True)[0].cached


def test_what_cannot_be_parsed_is_unparsed_and_stored_and_what_is_nothing_is_asked_again(desk, store):
    unparsed = desk(WritingEngine(Written("...", 2)), store)
    (writing,) = unparsed.write(BRIEF, STATE, 1, 0)
    assert (writing.status, writing.text, writing.tokens) == (Status.UNPARSED, "", 2)
    assert unparsed.write(BRIEF, STATE, 1, 0)[0].cached
    silent = desk(WritingEngine(Written("", 0)), store)
    assert silent.write(BRIEF, STATE, 1, 1)[0].status is Status.UNPARSED
    assert not silent.write(BRIEF, STATE, 1, 1)[0].cached


def test_a_field_that_is_no_text_is_rejected_and_the_engine_not_asked(desk):
    engine = WritingEngine()
    assert [w.status for w in desk(engine).write(BRIEF, {"state": b"\xff"}, 2, 0)] == [Status.REJECTED] * 2
    assert engine.seeds == []


@pytest.mark.parametrize(
    ("fields", "num", "seed", "message"),
    [
        (STATE, 0, 0, f"wants 0 writings, 1 to {MAX_NUM} are given"),
        (STATE, MAX_NUM + 1, 0, "split it"),
        (STATE, 1, -1, "the seed is -1"),
        (STATE, 1, 2**64, "wanted a whole number in 0 to"),
        ({"state": b"x" * 65}, 1, 0, "has 65 bytes, at most 64 are taken"),
        ({}, 1, 0, "needs the field 'state'"),
    ],
)
def test_a_request_beyond_a_limit_is_refused(desk, fields, num, seed, message):
    with pytest.raises(ValueError, match=message):
        desk(WritingEngine()).submit(BRIEF, fields, num, seed)


@pytest.mark.parametrize("engine", ["none", "scripted"])
def test_an_engine_that_cannot_write_says_so_at_once(desk, rubric, engine):
    with pytest.raises(ValueError, match=f"cannot write .engine {engine}.: start one with a language model"):
        desk(build_engine(ServiceConfig(engine=engine), rubric)).submit(BRIEF, STATE, 1, 0)


def test_too_many_waiting_requests_are_refused_and_a_cancelled_one_frees_its_place(desk):
    engine = WritingEngine()
    engine.gate.clear()
    made = desk(engine)
    futures = [made.submit(BRIEF, STATE, 1, seed) for seed in range(MAX_PENDING_REQUESTS)]
    with pytest.raises(JudgeBusyError, match="ask again later"):
        made.submit(BRIEF, STATE, 1, 0)
    assert futures[-1].cancel()
    made.submit(BRIEF, STATE, 1, 99)
    engine.gate.set()
    assert [len(future.result(WAIT_S)) for future in futures[:-1]] == [1] * (MAX_PENDING_REQUESTS - 1)


def test_a_failing_model_fails_its_request_alone(desk):
    engine = WritingEngine(ArithmeticError("the model broke"))
    made = desk(engine)
    with pytest.raises(JudgeFailedError, match="ArithmeticError: the model broke"):
        made.write(BRIEF, STATE, 1, 0)
    engine.said = ValueError("the brief takes too many tokens")
    with pytest.raises(ValueError, match="too many tokens"):
        made.write(BRIEF, STATE, 1, 0)
    engine.said = None
    assert made.write(BRIEF, STATE, 1, 0)[0].status is Status.OK


def test_closing_fails_what_waits_and_later_requests(desk):
    engine = WritingEngine()
    engine.gate.clear()
    made = desk(engine)
    under_way = made.submit(BRIEF, STATE, 1, 0)
    assert engine.entered.acquire(timeout=WAIT_S)
    waiting = made.submit(BRIEF, STATE, 1, 1)
    engine.said = RuntimeError("closed before everything was written")
    made.close()
    engine.gate.set()
    with pytest.raises(JudgeClosedError):
        under_way.result(WAIT_S)
    assert waiting.cancelled()
    with pytest.raises(JudgeClosedError):
        made.submit(BRIEF, STATE, 1, 0)


def test_an_older_store_opens_and_a_file_without_writings_stays_as_it_was(tmp_path, desk):
    path = tmp_path / "store.sqlite"
    store = JudgementStore(path)

    def tables():
        return {name for (name,) in store._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    assert "writings" not in tables()
    began, thread = (
        time.monotonic(),
        threading.Thread(target=lambda: desk(WritingEngine(), store).write(BRIEF, STATE, 1, 0)),
    )
    thread.start()
    thread.join(WAIT_S)
    assert "writings" in tables()
    assert time.monotonic() - began < WAIT_S
    store.close()
    JudgementStore(path).close()
