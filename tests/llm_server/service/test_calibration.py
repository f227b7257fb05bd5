"""A model's bias is removed from its answers, and theta is set by items of both sides, within bounds."""

import dataclasses
import math

import pytest

from llm_server.annotation import Judgement, Score, ServiceDescription, Status
from llm_server.rubrics.rubric import Calibration, GradedAnswer, Rubric
from llm_server.service.calibration import BOUNDS, NEGATIVE_PROBABILITY, calibrate

YES_NO = Rubric(id="r", version="1", goal="g", style="completion", instructions="", positive=" yes", negative=" no")
KINDS = Rubric(
    id="r",
    version="1",
    goal="g",
    style="completion",
    instructions="",
    positive_kinds=(" kill", " gold"),
    negative_kinds=(" pet", " nothing"),
)


class TableEngine:
    """Answers from a table: the shares of the answers, or the probability of the first of two."""

    model, judges, writes, needs_calibration, fingerprint = "table", True, False, True, "table"

    def __init__(self, table, name="transformers/cpu/float32"):
        self.name = name
        self._table = {
            text: shares if isinstance(shares, tuple) else (shares, 1 - shares) for text, shares in table.items()
        }

    def score(self, texts):
        return [Score(self._table[text][0], 0.9, self._table[text]) for text in texts]


def calibrated(rubric, table, **calibration):
    return calibrate(TableEngine(table), dataclasses.replace(rubric, calibration=Calibration(**calibration)))


def odds(p):
    return math.log(p / (1 - p))


def test_theta_lies_midway_in_the_gap_that_divides_best():
    table = {"wall": 0.1, "stone": 0.2, "odd": 0.45, "kill": 0.3, "gold": 0.5, "door": 0.5}
    found = calibrated(YES_NO, table, items=("wall", "stone", "odd"), positives=("kill", "gold", "door"))
    assert odds(found.threshold) == pytest.approx((odds(0.2) + odds(0.3)) / 2)
    assert found.decided_by == ("stone", "kill")


def test_where_most_items_deserve_a_no_theta_keeps_more_of_them_out():
    table = {"wall": 0.1, "stone": 0.2, "odd": 0.45, "kill": 0.3, "gold": 0.5, "door": 0.5}
    found = calibrated(
        YES_NO, table, items=("wall", "stone", "odd"), positives=("kill", "gold", "door"), negatives_per_positive=7.0
    )
    assert odds(found.threshold) == pytest.approx((odds(0.45) + odds(0.5)) / 2)
    assert found.decided_by == ("odd", "gold")


def test_one_odd_item_does_not_set_theta():
    items, positives = tuple(f"no {n}" for n in range(20)), tuple(f"yes {n}" for n in range(20))
    table = {item: 0.15 + 0.001 * n for n, item in enumerate(items)} | {
        item: 0.5 + 0.001 * n for n, item in enumerate(positives)
    }
    without = calibrated(YES_NO, table, items=items, positives=positives)
    assert (
        calibrated(YES_NO, table | {"odd": 0.58}, items=(*items, "odd"), positives=positives).threshold
        == without.threshold
    )


def test_of_equally_good_places_theta_takes_the_widest_gap():
    found = calibrated(YES_NO, {"a": 0.10, "x": 0.13, "b": 0.14, "y": 0.4}, items=("a", "b"), positives=("x", "y"))
    assert found.decided_by == ("b", "y")
    found = calibrated(YES_NO, {"a": 0.10, "x": 0.38, "b": 0.39, "y": 0.4}, items=("a", "b"), positives=("x", "y"))
    assert found.decided_by == ("a", "x")


def test_without_positives_theta_is_a_margin_above_the_highest():
    found = calibrated(YES_NO, {"wall": 0.1, "stone": 0.2}, items=("wall", "stone"), margin=0.4)
    assert odds(found.threshold) == pytest.approx(odds(0.2) + 0.4)


@pytest.mark.parametrize(("no", "yes", "bound"), [(0.01, 0.02, BOUNDS[0]), (0.9, 0.95, BOUNDS[1])])
def test_theta_is_held_within_its_bounds_and_the_items_that_set_it_are_named(no, yes, bound, caplog):
    assert calibrated(YES_NO, {"wall": no, "kill": yes}, items=("wall",), positives=("kill",)).threshold == bound
    assert "'wall' and 'kill'" in caplog.text


def test_an_answer_that_every_item_gets_counts_for_nothing():
    """This model answers `gold` to everything, and `kill` rarely, but for one item far more than for the others."""
    table = {
        "wall": (0.01, 0.80, 0.09, 0.10),
        "stone": (0.01, 0.80, 0.10, 0.09),
        "killed": (0.10, 0.70, 0.10, 0.10),
        "more of nothing": (0.01, 0.82, 0.08, 0.09),
    }
    found = calibrated(KINDS, table, items=("wall", "stone"), positives=("killed",))
    killed, nothing = (
        found.probability(Score(sum(table[name][:2]), 0.9, table[name])) for name in ("killed", "more of nothing")
    )
    assert table["killed"][0] + table["killed"][1] < table["more of nothing"][0] + table["more of nothing"][1]
    assert killed > found.threshold > nothing


def test_what_deserves_a_no_gets_the_same_on_average_whatever_the_model():
    for shares in ((0.01, 0.80, 0.09, 0.10), (0.4, 0.3, 0.2, 0.1)):
        found = calibrated(
            KINDS, {"wall": shares, "killed": (0.9, 0.05, 0.03, 0.02)}, items=("wall",), positives=("killed",)
        )
        assert found.probability(Score(0.0, 0.9, shares)) == pytest.approx(NEGATIVE_PROBABILITY)


def test_an_engine_that_needs_no_calibration_is_taken_at_its_word():
    engine = TableEngine({})
    engine.needs_calibration = False
    found = calibrate(engine, KINDS)
    assert found.threshold == 0.5
    assert found.probability(Score(0.7, 1.0)) == 0.7


def test_an_engine_that_answers_nothing_is_an_error():
    with pytest.raises(ValueError, match="no usable answer"):
        calibrated(YES_NO, {"wall": math.nan}, items=("wall",))


def described(noise, threshold=0.4):
    return ServiceDescription(
        model="m",
        engine="e",
        fingerprint="f",
        rubric_id="r",
        rubric_version="1",
        rubric_hash="h",
        pairs_hash="",
        threshold=threshold,
        max_items_per_request=1,
        max_item_bytes=1,
        forward_passes=0,
        noise=noise,
    )


def test_what_lies_within_the_noise_of_theta_is_undecided_and_not_paid():
    said = described(noise=0.1)
    within, above = (1 / (1 + math.exp(-(odds(0.4) + distance))) for distance in (0.09, 0.11))
    judgements = [Judgement(status=Status.OK, probability=p, answer_mass=0.9) for p in (within, above, 0.1)]
    assert [said.num_undecided([judgement.probability]) for judgement in judgements] == [1, 0, 0]
    assert said.num_undecided([judgement.probability for judgement in judgements]) == 1
    assert [judgement.probability > said.pays_above for judgement in judgements] == [False, True, False]
    assert not said.num_undecided([math.nan])


def test_answers_that_differ_by_less_than_the_noise_are_never_paid_here_and_refused_there():
    said = described(noise=0.1)
    for distance in (-0.15, -0.05, 0.0, 0.05, 0.12, 0.2):
        here, there = (1 / (1 + math.exp(-(odds(0.4) + distance + rounding))) for rounding in (-0.045, 0.045))
        verdicts = {
            "yes" if p > said.pays_above else "undecided" if abs(odds(p) - odds(0.4)) <= 0.1 else "no"
            for p in (here, there)
        }
        assert verdicts != {"yes", "no"}


def test_the_noise_goes_by_the_engines_arithmetic():
    rubric = dataclasses.replace(YES_NO, threshold=0.5)
    noises = [
        calibrate(TableEngine({}, name), rubric).noise
        for name in ("scripted", "transformers/cpu/float32", "transformers/cuda/bfloat16", "openai/chat/logprobs20")
    ]
    assert noises[0] == 0.0
    assert 1e-4 < noises[1] < 0.01
    assert noises[2] == noises[3] >= 0.06


GRADED = Rubric(
    id="r",
    version="1",
    goal="g",
    style="completion",
    instructions="",
    answers=tuple(GradedAnswer(word=f" {value}", value=value) for value in (0.0, 0.5, 1.0)),
    threshold=0.5,
)


def test_graded_answers_without_calibration_items_are_the_plain_expected_value():
    found = calibrate(TableEngine({}), GRADED)
    assert (found.threshold, found.bias) == (0.5, ())
    assert found.probability(Score(0.4, 0.9, (0.4, 0.4, 0.2))) == 0.4


def test_the_bias_of_graded_answers_is_removed_over_items_that_deserve_the_least():
    """This model says ` 0.5` to everything."""
    table = {"wall": (0.06, 0.90, 0.04), "stone": (0.05, 0.90, 0.05), "kill": (0.03, 0.90, 0.07)}
    free = dataclasses.replace(GRADED, threshold=None)
    found = calibrated(free, table, items=("wall", "stone"), positives=("kill",))
    values = {text: found.probability(Score(0.5, 0.9, shares)) for text, shares in table.items()}
    assert max(values["wall"], values["stone"]) < found.threshold < values["kill"]
    assert values["wall"] < 0.25
    assert calibrated(GRADED, table, items=("wall", "stone")).threshold == 0.5, "a threshold that is given stays"
