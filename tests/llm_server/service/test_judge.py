"""The judge asks the model once for concurrent requests, never for stored items, and leaves no work behind."""

import math
import threading

import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.annotation import Status
from llm_server.service.judge import MAX_PENDING_REQUESTS, Judge, build_judge
from llm_server.service.pending import JudgeBusyError, JudgeClosedError, JudgeFailedError
from llm_server.service.store import open_store
from tests.llm_server.gated_engine import GatedEngine


@pytest.fixture
def engine():
    return GatedEngine()


@pytest.fixture
def make(engine, rubric):
    judges = []

    def make(**settings) -> Judge:
        config = ServiceConfig(**{"engine": "scripted", "store": "memory", "batch_size": 4, **settings})
        judges.append(Judge(engine, [rubric], open_store(config.store), config))
        return judges[-1]

    yield make
    engine.gate.set()
    for judge in judges:
        judge.close()


def test_one_judgement_per_item_in_the_order_asked(make):
    items = [b"good 1", b"bad", b"\xff", b"mumble", b"good 2", b"bad", b""]
    judgements = make().annotate(items)
    statuses = [Status.OK, Status.OK, Status.REJECTED, Status.UNPARSED, Status.OK, Status.OK, Status.REJECTED]
    assert [judgement.status for judgement in judgements] == statuses
    assert [judgement.probability for judgement in judgements if judgement.status is Status.OK] == [0.9, 0.1, 0.9, 0.1]
    assert all(math.isnan(judgement.probability) for judgement in judgements if judgement.status is not Status.OK)


def test_a_repeated_item_costs_one_forward_pass(make, engine):
    judge = make()
    judge.annotate([b"same", b"same", b"same"])
    assert engine.asked == ["same"]
    assert judge.describe().forward_passes == 1


def test_a_series_of_messages_is_asked_message_by_message_and_each_once(make, engine, rubric):
    judge = make()
    judgements = judge.annotate([b"good 1  bad", b"bad  worse", b"bad"])
    assert rubric.separator == "  "
    assert [judgement.probability for judgement in judgements] == [0.9, 0.1, 0.1]
    assert engine.asked == ["good 1", "bad", "worse"]


def test_two_requests_for_one_item_at_once_cost_one_forward_pass(make, engine):
    judge = make()
    engine.gate.clear()
    first = judge.submit([b"wanted"])
    assert engine.entered.acquire(timeout=120)
    second = judge.submit([b"wanted"])
    engine.gate.set()
    assert first.result(10) == second.result(10)
    assert engine.asked == ["wanted"]


def test_requests_that_wait_together_share_a_batch(make, engine):
    judge = make()
    engine.gate.clear()
    futures = [judge.submit([b"first"])]
    assert engine.entered.acquire(timeout=120)
    futures += [judge.submit([f"later {n}".encode()]) for n in range(6)]
    engine.gate.set()
    for future in futures:
        future.result(10)
    assert [len(batch) for batch in engine.batches] == [1, 4, 2]


def test_a_cancelled_request_leaves_only_what_others_want(make, engine):
    judge = make()
    engine.gate.clear()
    judge.submit([b"in the engine"])
    assert engine.entered.acquire(timeout=120)
    cancelled = judge.submit([b"only mine", b"ours"])
    kept = judge.submit([b"ours"])
    assert cancelled.cancel()
    engine.gate.set()
    assert kept.result(10)[0].status is Status.OK
    assert "only mine" not in engine.asked
    assert engine.asked.count("ours") == 1


def test_what_the_store_knows_is_not_asked_again(make, engine, tmp_path):
    path = str(tmp_path / "judgements.sqlite")
    first = make(store=path)
    assert [judgement.cached for judgement in first.annotate([b"good", b"mumble"])] == [False, False]
    first.close()
    again = make(store=path).annotate([b"good", b"mumble", b"new"])
    assert [judgement.cached for judgement in again] == [True, True, False]
    assert [judgement.status for judgement in again] == [Status.OK, Status.UNPARSED, Status.OK]
    assert engine.asked == ["good", "mumble", "new"]


def test_bypassing_the_store_neither_reads_nor_writes_it(make, engine, tmp_path):
    judge = make(store=str(tmp_path / "judgements.sqlite"))
    judge.annotate([b"kept"])
    assert not judge.annotate([b"kept"], bypass_store=True)[0].cached
    judge.annotate([b"unkept"], bypass_store=True)
    assert not judge.annotate([b"unkept"])[0].cached
    assert engine.asked == ["kept", "kept", "unkept", "unkept"]


def test_broken_numbers_are_unparsed_and_not_kept(make, engine, tmp_path):
    judge = make(store=str(tmp_path / "judgements.sqlite"))
    for _ in range(2):
        (judgement,) = judge.annotate([b"broken"])
        assert (judgement.status, judgement.answer_mass, judgement.cached) == (Status.UNPARSED, 0.0, False)


def test_a_failing_model_fails_those_items_only(make):
    judge = make()
    with pytest.raises(JudgeFailedError, match="ArithmeticError: the model broke"):
        judge.annotate([b"poison", b"good"])
    assert judge.annotate([b"good"])[0].probability == 0.9


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ([], "no items"),
        ([b"x"] * 9, "9 items, at most 8 are taken: split"),
        ([b"ok", b"x" * 33], "item 1 has 33 bytes, at most 32"),
    ],
)
def test_a_request_that_breaks_a_limit_is_refused_with_the_limit(make, items, complaint):
    judge = make(max_items_per_request=8, max_item_bytes=32)
    with pytest.raises(ValueError, match=complaint):
        judge.submit(items)


def test_what_waits_is_bounded(make, engine):
    judge = make(max_items_per_request=2)
    engine.gate.clear()
    futures = [judge.submit([f"{n}a".encode(), f"{n}b".encode()]) for n in range(MAX_PENDING_REQUESTS)]
    with pytest.raises(JudgeBusyError, match="ask again later"):
        judge.submit([b"one more"])
    assert judge.submit([b"0a"]) is not None, "what is asked already costs nothing"
    engine.gate.set()
    for future in futures:
        future.result(10)
    assert judge.annotate([b"one more"])


def test_closing_fails_what_was_not_answered(make, engine):
    judge = make()
    engine.gate.clear()
    judge.submit([b"in the engine"])
    assert engine.entered.acquire(timeout=120)
    waiting = judge.submit([b"waits"])
    closing = threading.Thread(target=judge.close)
    closing.start()
    with pytest.raises(JudgeClosedError):
        waiting.result(10)
    engine.gate.set()
    closing.join(60)
    assert engine.asked == ["in the engine"]
    assert engine.is_closed
    with pytest.raises(JudgeClosedError):
        judge.submit([b"too late"])


def test_the_scripted_engine_needs_no_calibration(rubric):
    judge = build_judge(ServiceConfig(engine="scripted", store="memory", script="newt=0.9;wa..=0.2"), [rubric])
    assert [judgement.probability for judgement in judge.annotate([b"a newt in a wall", b"a wall", b"else"])] == [
        0.9,
        0.2,
        0.1,
    ]
    assert judge.describe().threshold == 0.5
    judge.close()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"engine": "scriptet"}, "did you mean 'scripted'"),
        ({"engine": "scripted", "script": "newt"}, "`regex=probability`"),
        ({"engine": "scripted", "script": "newt=2"}, "in 0 to 1"),
        ({"engine": "scripted", "script": "ne(wt=0.5"}, "`regex=probability`"),
        ({"model": "/no/such/folder"}, "model folder '/no/such/folder' does not exist"),
        ({"dtype": "float17"}, "got 'float17' (did you mean 'bfloat16'?), wanted one of auto, bfloat16, float32"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(rubric, settings, complaint):
    with pytest.raises(ValueError) as error:
        build_judge(ServiceConfig(**{"store": "memory", **settings}), [rubric])
    assert complaint in str(error.value)


def test_a_folder_that_holds_no_model_is_one_clear_error(rubric, tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json: give a folder"):
        build_judge(ServiceConfig(store="memory", model=str(tmp_path)), [rubric])


@pytest.mark.parametrize("bypass_store", [False, True])
def test_an_item_that_is_given_up_while_the_model_has_it_and_asked_again_harms_nobody(make, engine, bypass_store):
    judge = make()
    engine.gate.clear()
    given_up = judge.submit([b"good"], bypass_store)
    assert engine.entered.acquire(timeout=120)
    assert given_up.cancel()
    again = judge.submit([b"good"], bypass_store)
    engine.gate.set()
    assert again.result(20)[0].probability == 0.9
    assert judge.submit([b"bad"]).result(20)[0].probability == 0.1, "the worker lives on"


def test_a_store_that_breaks_fails_its_request_and_no_other(make, engine, monkeypatch, tmp_path):
    judge = make(store=str(tmp_path / "judgements.sqlite"))
    monkeypatch.setattr(judge._store, "look_up", lambda *_: 1 / 0)
    with pytest.raises(JudgeFailedError, match="ZeroDivisionError"):
        judge.submit([b"good"]).result(20)
    monkeypatch.undo()
    assert judge.submit([b"good"]).result(20)[0].probability == 0.9
