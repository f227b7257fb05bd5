"""Linear programs by judgement: weights, the permuted control, and a text that pays what the table says."""

import math

import numpy as np
import pytest

from cluster.programs.linear import (
    JudgedFeature,
    deviations_of,
    exchanged_signs,
    in_words,
    program_text,
    scaled,
    theta_of,
    weights_of,
)
from reward_models.programs.compiling import compile_program
from reward_models.programs.evaluation import evaluate_reward


def judged(weights: np.ndarray, deviations: np.ndarray, names: list[str]) -> list[JudgedFeature]:
    rows = zip(names, weights.tolist(), deviations.tolist(), strict=True)
    return [JudgedFeature(name=name, probability=0.5, deviation=d, weight=w) for name, w, d in rows]


def test_weights_are_distances_from_theta_over_the_largest_one() -> None:
    found = weights_of(np.array([0.9, 0.2, 0.41, math.nan]), theta=0.4, noise=0.1)
    np.testing.assert_allclose(found, [1.0, -0.4, 0.0, 0.0])
    assert not weights_of(np.array([0.41, 0.39, math.nan]), theta=0.4, noise=0.1).any()


def test_theta_is_the_mean_log_odds_of_items_without_content_or_else_the_rubrics() -> None:
    assert theta_of(np.array([0.2, 0.8, math.nan]), otherwise=0.3) == pytest.approx(0.5)
    assert theta_of(np.array([math.nan]), otherwise=0.3) == 0.3


def test_deviations_are_those_of_known_changes() -> None:
    changes = np.array([[1, math.nan, 0], [-1, 2, 0], [math.nan, 4, 0]], np.float32)
    np.testing.assert_allclose(deviations_of(changes), [1, 1, 0])
    assert deviations_of(np.full((3, 1), math.nan, np.float32)) == [0]


def test_a_control_has_the_weights_of_the_program_with_other_signs() -> None:
    weights = np.array([1.0, -0.5, 0.0, -0.25, 0.125])
    for seed in range(20):
        found = exchanged_signs(weights, seed)
        np.testing.assert_array_equal(abs(found), abs(weights))
        assert sorted(np.sign(found)) == sorted(np.sign(weights))
        assert not np.array_equal(found, weights)
        np.testing.assert_array_equal(found, exchanged_signs(weights, seed))
    with pytest.raises(ValueError, match="2 features that are all judged bad"):
        exchanged_signs(np.array([-1.0, -0.5, 0.0]), 0)


def test_the_program_pays_what_the_table_says_with_deviation_one() -> None:
    rng = np.random.default_rng(0)
    names = [f"feature_{i}" for i in range(18)] + ["a" * 40, "a" * 39 + "b"]
    before = rng.normal(size=(500, 20)).astype(np.float32)
    changes = (rng.normal(size=(500, 20)) * np.geomspace(1e-3, 1e3, 20)).astype(np.float32)
    weights, deviations = rng.uniform(-1, 1, 20), deviations_of(changes)
    weights[-2:] = 1
    features = scaled(judged(weights, deviations, names), changes)
    paid = [place for place, feature in enumerate(features) if feature.coefficient]
    assert len(paid) == 16
    assert min(abs(weights[paid])) >= max(abs(np.delete(weights, paid)))
    program = compile_program(program_text(features, names, ["Line\nbreaks.", "x" * 5000]), names)
    after = before + changes
    components = evaluate_reward(program, before, after, before, np.zeros(500, np.int64), names)
    expected = (after - before) @ np.array([f.coefficient / f.deviation for f in features])
    np.testing.assert_allclose(components.sum(-1), expected, rtol=1e-3, atol=1e-4)
    assert components.sum(-1).std() == pytest.approx(1, abs=0.01)
    assert len(set(program.components)) == 16


def test_changes_that_cancel_are_refused() -> None:
    change = np.random.default_rng(0).normal(size=(100, 1)).astype(np.float32)
    changes = np.concatenate([change, change], axis=1)
    features = judged(np.array([1.0, -1.0]), deviations_of(changes), ["x", "y"])
    with pytest.raises(ValueError, match="the weighted changes of x, y cancel in every step"):
        scaled(features, changes)


def test_a_judge_reads_names_in_words() -> None:
    assert in_words("distance_to_key") == "distance to key"
    assert in_words("__x__") == "x"
