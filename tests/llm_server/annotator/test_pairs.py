"""Pairs are asked in both orders, once, and the position bias cancels."""

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch

from configs.annotation_schema import ServiceConfig
from llm_server.annotation import Judgement, PairJudgement, Score, Status
from llm_server.rubrics.loading import load_rubric, parse_rubric
from llm_server.rubrics.rubric import Calibration, Example, PairExample, PairRubric
from llm_server.service.combining import pair_judgement
from llm_server.service.judge import Judge, build_judge
from llm_server.service.pending import JudgeClosedError
from llm_server.service.store import open_store

PAIRS = PairRubric(
    instructions="Which message from NetHack is more progress?",
    first=" A",
    second=" B",
    first_label="A:",
    second_label="B:",
    examples=(
        PairExample(first="You kill the newt!", second="It's a wall.", better="first"),
        PairExample(first="You hear a door open.", second="You descend the stairs.", better="second"),
    ),
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class BiasedEngine:
    """Log-odds of `first`: the first text's final number minus the second's, plus a position bias of 1.5."""

    name = model = fingerprint = "biased"
    judges, writes, needs_calibration = True, False, False

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score(self, texts: Sequence[str]) -> list[Score]:
        return [Score(0.5, 1.0) for _ in texts]

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        self.asked += pairs
        return [
            Score(math.nan, math.nan) if "broken" in first else Score(self._p(first, second), 0.9)
            for first, second in pairs
        ]

    def close(self) -> None:
        pass

    def _p(self, first: str, second: str) -> float:
        return sigmoid(float(first.split()[-1]) - float(second.split()[-1]) + 1.5)


@pytest.fixture(scope="module")
def comparing():
    return dataclasses.replace(load_rubric("nethack_progress"), pairs=PAIRS)


@pytest.fixture
def make(comparing):
    judges = []

    def make(engine=None, rubric=comparing, **settings) -> Judge:
        config = ServiceConfig(**{"store": "memory", "batch_size": 4, **settings})
        judges.append(Judge(engine or BiasedEngine(), [rubric], open_store(config.store), config))
        return judges[-1]

    yield make
    for judge in judges:
        judge.close()


def test_the_place_cancels_and_is_reported(make):
    judgement, swapped = make().annotate_pairs([(b"gold 2", b"wall 1"), (b"wall 1", b"gold 2")])
    assert judgement.preference == pytest.approx(sigmoid(1.0))
    assert judgement.preference + swapped.preference == pytest.approx(1.0, abs=1e-12)
    assert judgement.position_bias == pytest.approx(1.5)
    assert (judgement.status, judgement.answer_mass) == (Status.OK, 0.9)


def test_both_orders_are_asked_once_whoever_asks(make):
    engine = BiasedEngine()
    judge = make(engine)
    judge.annotate_pairs([(b"a 1", b"b 2"), (b"b 2", b"a 1"), (b"a 1", b"b 2")])
    assert sorted(engine.asked) == [("a 1", "b 2"), ("b 2", "a 1")]


def test_pairs_are_stored_apart_from_items_and_from_pairs_that_only_look_alike(make, tmp_path):
    engine, store = BiasedEngine(), str(tmp_path / "judgements.sqlite")
    first = make(engine, store=store)
    fresh = first.annotate_pairs([(b"a 1", b"b 2")])[0]
    first.close()
    again = make(engine, store=store)
    cached, other = again.annotate_pairs([(b"a 1", b"b 2"), (b"a 1 1", b"b 2")])
    assert cached == dataclasses.replace(fresh, cached=True)
    assert not other.cached
    assert len(engine.asked) == 4
    assert not again.annotate([b"a 1"])[0].cached
    another = dataclasses.replace(again.rubrics[0], pairs=dataclasses.replace(PAIRS, instructions="Otherwise."))
    assert not make(engine, rubric=another, store=store).annotate_pairs([(b"a 1", b"b 2")])[0].cached


def test_items_that_read_alike_are_a_tie_and_cost_nothing(make):
    engine = BiasedEngine()
    (judgement,) = make(engine).annotate_pairs([(b"a  1", b"a 1")])
    assert (judgement.status, judgement.preference, judgement.position_bias) == (Status.OK, 0.5, 0.0)
    assert engine.asked == []


def test_what_cannot_be_asked_or_read_is_no_label(make):
    judgements = make().annotate_pairs([(b"a 1", b"\xff"), (b"", b""), (b"broken 1", b"b 2"), (b"a 1", b"b 2")])
    assert [j.status for j in judgements] == [Status.REJECTED, Status.REJECTED, Status.UNPARSED, Status.OK]
    assert all(math.isnan(j.preference) and math.isnan(j.position_bias) for j in judgements[:3])


def test_a_preference_near_a_half_is_a_tie_where_the_rubric_says_so():
    near, far = (
        Judgement(status=Status.OK, probability=0.55, answer_mass=1.0),
        Judgement(status=Status.OK, probability=0.9, answer_mass=1.0),
    )
    back = Judgement(status=Status.OK, probability=0.5, answer_mass=1.0)
    assert pair_judgement(near, back, tie_margin=0.05).preference == 0.5
    assert pair_judgement(far, back, tie_margin=0.05).preference == pytest.approx(sigmoid(math.log(9) / 2))


def test_limits_and_closing_hold_for_pairs_as_for_items(make, rubric):
    judge = make(max_item_bytes=16, max_items_per_request=4)
    with pytest.raises(ValueError, match="no items"):
        judge.annotate_pairs([])
    with pytest.raises(ValueError, match="17 bytes"):
        judge.annotate_pairs([(b"a 1", b"x" * 17)])
    with pytest.raises(ValueError, match="no `pairs` section"):
        make(rubric=dataclasses.replace(rubric, pairs=None)).annotate_pairs([(b"a 1", b"b 2")])
    judge.close()
    with pytest.raises(JudgeClosedError):
        judge.annotate_pairs([(b"a 1", b"b 2")])


def test_a_service_without_an_engine_says_so(comparing):
    judge = build_judge(ServiceConfig(engine="none", store="memory"), [comparing])
    with pytest.raises(ValueError, match="engine none"):
        judge.annotate([b"a"])
    judge.close()


def test_the_scripted_engine_prefers_what_its_rules_prefer(comparing):
    judge = build_judge(ServiceConfig(engine="scripted", script="kill=0.9", store="memory"), [comparing])
    (judgement,) = judge.annotate_pairs([(b"You kill the newt!", b"It's a wall.")])
    assert judgement.preference == pytest.approx(0.9 * 0.9 / (0.9 * 0.9 + 0.1 * 0.1))
    judge.close()


def test_the_first_answers_probability_is_that_of_a_plain_forward_pass(smollm2, comparing):
    """A tie counts half; the model is the real one."""
    examples = (Example(item="You kill the jackal!", positive=True), Example(item="It's solid stone.", positive=False))
    rubric = dataclasses.replace(
        comparing,
        examples=examples,
        calibration=Calibration(items=("It's a wall.",)),
        pairs=dataclasses.replace(
            PAIRS, tie=" none", examples=(*PAIRS.examples, PairExample(first="A.", second="A.", better="tie"))
        ),
    )
    engine = smollm2.under(rubric)
    pairs = [
        ("You kill the jackal!", "It's a wall."),
        ("It's a wall.", "You see here a very long orcish helm named Bob."),
    ]
    for (first, second), score in zip(pairs, engine.score_pairs(pairs), strict=True):
        before, after = rubric.pair_question().completion_prompt()
        assert f"\n\nA: {first}\nB: {second}" not in before
        ids = engine._tokenizer(f"{before} {first}\nB: {second}{after}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = engine._model(ids).logits[0, -1]
        one, two, none = (
            logits.softmax(-1)[engine._tokenizer(word)["input_ids"][-1]].item() for word in (" A", " B", " none")
        )
        assert score.answer_mass == pytest.approx(one + two + none, rel=1e-3)
        assert score.probability == pytest.approx((one + none / 2) / (one + two + none), rel=1e-3)


def test_the_pairs_section_is_checked_and_leaves_the_hash_of_single_items_alone():
    alone = (
        "id: x\nversion: 1\ngoal: g\nstyle: completion\ninstructions: I.\n"
        "positive: ' yes'\nnegative: ' no'\nthreshold: 0.5\n"
    )
    examples = "[{first: a, second: b, better: first}]"
    both = f"{alone}pairs: {{instructions: P., first: ' 1', second: ' 2', examples: {examples}}}\n"
    assert parse_rubric(alone, "r").content_hash == parse_rubric(both, "r").content_hash
    assert parse_rubric(alone, "r").pairs_hash == ""
    assert parse_rubric(both, "r").pairs_hash != parse_rubric(both.replace("P.", "Q."), "r").pairs_hash
    assert parse_rubric(both, "r").pair_question().completion_prompt() == (
        "P.\n\nFirst: a\nSecond: b\nBetter: 1\n\nFirst:",
        "\nBetter:",
    )
    mistakes = {
        "first: ' 1'": ("first: '2'", "every answer must differ"),
        "second: ' 2'": ("second: ''", "an answer is empty"),
        "better: first": ("better: left", "better is `first`"),
        "better: first,": ("", ""),
        "P.,": ("P., tie_margin: 0.6,", "tie_margin must lie"),
        "instructions: P.": ("instruction: P.", "did you mean"),
    }
    for old, (new, complaint) in mistakes.items():
        if new:
            with pytest.raises(ValueError, match=f"rubric 'r: pairs.*{complaint}"):
                parse_rubric(both.replace(old, new), "r")
    with pytest.raises(ValueError, match="no answer `tie`"):
        parse_rubric(both.replace("better: first", "better: tie"), "r")


def test_an_unasked_status_wins_over_an_answered_one():
    ok, bad = (
        Judgement(status=Status.OK, probability=0.9, answer_mass=1.0),
        Judgement(status=Status.REJECTED, probability=math.nan, answer_mass=0.0),
    )
    assert pair_judgement(ok, bad).status is Status.REJECTED
    assert isinstance(pair_judgement(ok, ok), PairJudgement)
