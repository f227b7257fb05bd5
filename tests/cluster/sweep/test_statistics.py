import itertools

import numpy as np
import pytest

from cluster.sweep.statistics import (
    difference,
    estimate,
    holm,
    improvement,
    interquartile_mean,
    permutation_test,
    share_of_gain,
)

RLIABLE_IQM = {"value": 0.56667, "low": 0.3, "high": 0.76667}
RLIABLE_IMPROVEMENT = {"value": 0.6625, "low": 0.4, "high": 0.9}


def test_the_interquartile_mean_leaves_a_quarter_out_at_either_end() -> None:
    values = np.array([9.0, 0.0, 1.0, 2.0, 3.0, 100.0, 4.0, 5.0])
    assert interquartile_mean(values) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean(np.array([0.0, 1.0, 5.0])) == pytest.approx(2.0)  # too few to leave one out
    assert interquartile_mean(np.stack([values, values + 1])) == pytest.approx([3.5, 4.5])


def test_runs_are_resampled_within_their_stratum() -> None:
    """Every resample of equal strata has as many zeros as ones, so that their mean does not move; one pool of them
    moves."""
    assert estimate([[0.0] * 5, [1.0] * 5], lambda runs: runs.mean(axis=-1)) == {"value": 0.5, "low": 0.5, "high": 0.5}
    pooled = estimate([[0.0] * 5 + [1.0] * 5], lambda runs: runs.mean(axis=-1))
    assert pooled["low"] == pytest.approx(0.2)
    assert pooled["high"] == pytest.approx(0.8)


def test_the_probability_of_improvement_counts_ties_half() -> None:
    assert improvement([[[1.0, 0.5]]], [[[0.5, 0.0]]])["value"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert improvement([[[1.0] * 3]], [[[0.0] * 4]]) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_a_difference_is_that_of_means_averaged_over_tasks() -> None:
    first, second = [[[1.0, 0.0]], [[0.6], [0.8]]], [[[0.0]], [[0.1, 0.5]]]
    found = difference(first, second)
    assert found["value"] == pytest.approx((0.5 - 0.0 + 0.7 - 0.3) / 2)
    # Extremes of both: the first task's mean is 0, 0.5 or 1, the second's strata are fixed, the other's 0.1 to 0.5.
    assert found["low"] == pytest.approx((0.0 + 0.7 - 0.5) / 2)
    assert found["high"] == pytest.approx((1.0 + 0.7 - 0.1) / 2)
    assert difference([[[0.25] * 3]], [[[0.5] * 4]]) == {"value": -0.25, "low": -0.25, "high": -0.25}


def test_the_share_of_a_gain_is_relative_to_both_ends() -> None:
    assert share_of_gain([[[0.4] * 3]], [[[0.1] * 3]], [[[0.9] * 2]])["value"] == pytest.approx(0.375)
    found = share_of_gain([[[0.1, 0.5]]], [[[0.1]]], [[[0.9]]])
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.25, 0.0, 0.5))
    assert share_of_gain([[[0.4]]], [[[0.1, 0.5]]], [[[0.6, 0.4]]]) is None  # some resample has 0.4 against 0.5


def test_the_exact_test_counts_splits_that_are_at_least_as_good() -> None:
    first, second = [0.9, 0.4, 0.7], [0.1, 0.5, 0.4]
    joined = first + second
    as_good = [sum(joined[i] for i in split) >= sum(first) - 1e-9 for split in itertools.combinations(range(6), 3)]
    assert permutation_test([first], [second]) == pytest.approx(sum(as_good) / 20)
    assert permutation_test([[0.9, 0.8, 1.0, 0.7, 0.9]], [[0.0, 0.1, 0.2, 0.0, 0.6]]) == pytest.approx(1 / 252)
    assert permutation_test([[0.5, 0.5]], [[0.5, 0.5]]) == 1.0


def test_where_splits_are_too_many_a_random_part_of_them_decides() -> None:
    rng = np.random.default_rng(1)
    same, better = rng.normal(size=(2, 30)), rng.normal(1.5, size=10)
    assert permutation_test([better], [same[0]]) < 0.001
    assert 0.05 < permutation_test([same[1][:10]], [same[0]]) < 0.95


def test_holm_multiplies_the_least_p_by_the_number_of_tests_and_never_falls() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9}) == pytest.approx(
        {"b": 0.04, "c": 0.09, "a": 0.09, "d": 0.9}
    )
    assert holm({"a": 0.5, "b": 0.6}) == {"a": 1.0, "b": 1.0}


def test_tasks_are_permuted_each_within_itself() -> None:
    """Against all splits of two small tasks, counted one by one."""
    first, second = [[0.9, 0.2], [0.5, 0.7]], [[0.1, 0.4], [0.6, 0.3, 0.0]]
    observed = sum(np.mean(a) - np.mean(b) for a, b in zip(first, second, strict=True))
    splits = [
        [np.mean(chosen) - (sum(a + b) - sum(chosen)) / len(b) for chosen in itertools.combinations(a + b, len(a))]
        for a, b in zip(first, second, strict=True)
    ]
    exact = np.mean([sum(both) >= observed - 1e-9 for both in itertools.product(*splits)])
    assert permutation_test(first, second) == pytest.approx(exact, abs=0.005)


def test_figures_are_those_of_rliable() -> None:
    """Of rliable 1.2.0 (metrics.aggregate_iqm, metrics.probability_of_improvement, get_interval_estimates with 50,000
    resamples) for two tasks of five runs against two of four."""
    first = [[0.1, 0.9, 0.8, 0.7, 0.3], [0.5, 0.5, 0.6, 0.0, 1.0]]
    second = [[0.2, 0.1, 0.7, 0.4], [0.5, 0.2, 0.6, 0.1]]
    assert estimate(first) == pytest.approx(RLIABLE_IQM, abs=0.012)
    found = improvement([[task] for task in first], [[task] for task in second])
    assert found == pytest.approx(RLIABLE_IMPROVEMENT, abs=0.012)
