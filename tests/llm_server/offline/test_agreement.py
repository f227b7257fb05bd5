"""The audit's metrics against slow formulas, and the bootstrap's intervals against their coverage."""

import math

import numpy as np
import pytest

from llm_server.offline.audit_metrics import (
    accuracy_interval,
    auc,
    auc_interval,
    balanced_accuracy,
    calibration_error,
    pair_agreement,
    rank_correlation,
    rank_correlation_interval,
)


def slow_auc(scores, labels):
    wins = [
        (a > b) + 0.5 * (a == b)
        for a, x in zip(scores, labels, strict=True)
        if x
        for b, y in zip(scores, labels, strict=True)
        if not y
    ]
    return sum(wins) / len(wins)


def slow_calibration_error(probabilities, labels, num_bins):
    total = 0.0
    for number in range(num_bins):
        inside = [
            (p, y)
            for p, y in zip(probabilities, labels, strict=True)
            if number / num_bins <= p < (number + 1) / num_bins or (p == 1.0 and number == num_bins - 1)
        ]
        if inside:
            total += len(inside) / len(labels) * abs(np.mean([p for p, _ in inside]) - np.mean([y for _, y in inside]))
    return total


@pytest.mark.parametrize("decimals", [1, 9], ids=["with ties", "without ties"])
def test_auc_is_the_share_of_pairs_won(decimals):
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores, labels = np.round(rng.random(30), decimals), rng.random(30) < 0.4
        assert auc(scores, labels) == pytest.approx(slow_auc(scores, labels))


def test_auc_of_a_perfect_a_reversed_and_an_indifferent_order():
    labels = np.array([False, False, True, True])
    assert auc(np.array([0.1, 0.2, 0.3, 0.4]), labels) == 1.0
    assert auc(np.array([0.4, 0.3, 0.2, 0.1]), labels) == 0.0
    assert auc(np.full(4, 0.5), labels) == 0.5


def test_metrics_of_a_missing_class_are_nan():
    scores, labels = np.array([0.2, 0.8]), np.array([True, True])
    assert math.isnan(auc(scores, labels))
    assert all(math.isnan(value) for value in auc_interval(scores, labels))
    assert math.isnan(balanced_accuracy(scores, labels, 0.5))
    assert math.isnan(calibration_error(np.empty(0), np.empty(0, bool)))


def test_the_interval_is_seeded_and_does_not_depend_on_pieces(monkeypatch):
    rng = np.random.default_rng(2)
    labels = rng.random(80) < 0.5
    scores = rng.normal(labels, 1.0)
    interval = auc_interval(scores, labels)
    assert interval == auc_interval(scores, labels)
    assert interval.low < interval.estimate == auc(scores, labels) < interval.high
    assert interval != auc_interval(scores, labels, seed=1)
    monkeypatch.setattr("llm_server.offline.audit_metrics.MAX_TABLE", 1000)  # resamples are drawn in many pieces
    assert auc_interval(scores, labels)[1:] == pytest.approx(interval[1:], abs=0.02)


def test_resampling_by_counts_is_resampling_items():
    rng = np.random.default_rng(3)
    labels = np.arange(60) < 25
    scores = np.round(rng.normal(labels, 1.0), 1)
    plain = []
    for _ in range(1000):
        rows = np.concatenate([rng.choice(np.flatnonzero(labels), 25), rng.choice(np.flatnonzero(~labels), 35)])
        plain.append(auc(scores[rows], labels[rows]))
    interval = auc_interval(scores, labels)
    assert (interval.low, interval.high) == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.02)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth = 0.5 * (1 + math.erf(0.5))  # P(N(1,1) > N(0,1)) = Phi(1 / sqrt 2)
    rng = np.random.default_rng(4)
    labels = np.arange(100) < 50
    hits = 0
    for _ in range(200):
        interval = auc_interval(rng.normal(labels, 1.0), labels, num_resamples=400)
        hits += interval.low <= truth <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_accuracies_divide_strictly_above_the_threshold():
    scores, labels = np.array([0.9, 0.5, 0.4, 0.3, 0.2]), np.array([True, True, False, False, False])
    assert accuracy_interval(scores, labels, 0.5).estimate == 0.8, "a score at the threshold is not above it"
    assert balanced_accuracy(scores, labels, 0.5) == 0.75
    assert balanced_accuracy(scores, labels, 1.0) == 0.5


@pytest.mark.parametrize("num_bins", [5, 10])
def test_calibration_error_is_the_weighted_gap_of_the_bins(num_bins):
    rng = np.random.default_rng(5)
    probabilities = np.append(rng.random(98), [0.0, 1.0])
    labels = rng.random(100) < probabilities**2
    assert calibration_error(probabilities, labels, num_bins) == pytest.approx(
        slow_calibration_error(probabilities, labels, num_bins)
    )


def test_calibration_error_is_0_for_correct_certainty_and_1_for_wrong_certainty():
    labels = np.array([True, False])
    assert calibration_error(np.array([1.0, 0.0]), labels) == 0.0
    assert calibration_error(np.array([0.0, 1.0]), labels) == 1.0


def test_pairs_count_a_tie_half_and_an_order_that_decides_as_a_flip():
    agreement = pair_agreement(np.array([0.9, 0.2, 0.5, 0.6]), np.array([1.0, -1.0, 0.5, 0.1]))
    assert agreement.accuracy == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert agreement.position_bias == pytest.approx(0.15)
    assert agreement.order_flips == 0.25, "only the third: its log-odds of 0 change sides with a bias of 0.5"


def slow_rank_correlation(scores, values):
    """The formula: Pearson's correlation of mean ranks."""

    def ranks(numbers):
        return [np.mean([place for place, other in enumerate(sorted(numbers)) if other == each]) for each in numbers]

    return np.corrcoef(ranks(scores), ranks(values))[0, 1]


def test_rank_correlation_is_that_of_mean_ranks():
    rng = np.random.default_rng(6)
    for decimals in (1, 9):
        scores, values = np.round(rng.random(30), decimals), rng.choice([0.0, 0.5, 1.0], 30)
        assert rank_correlation(scores, values) == pytest.approx(slow_rank_correlation(scores, values))
        counts = rng.integers(0, 4, 30)
        repeated = np.repeat(scores, counts), np.repeat(values, counts)
        assert rank_correlation(scores, values, counts) == pytest.approx(slow_rank_correlation(*repeated))
    assert rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.0, 0.5, 1.0])) == pytest.approx(1.0)
    assert math.isnan(rank_correlation(np.full(4, 0.3), np.arange(4.0)))
    assert math.isnan(rank_correlation(np.empty(0), np.empty(0)))


def test_the_interval_of_the_rank_correlation_is_that_of_a_bootstrap_of_items():
    rng = np.random.default_rng(7)
    values = rng.choice([0.0, 0.5, 1.0], 60)
    scores = np.round(rng.normal(values, 0.5), 2)
    interval = rank_correlation_interval(scores, values)
    assert interval == rank_correlation_interval(scores, values)
    drawn = [rng.integers(0, 60, 60) for _ in range(1000)]
    plain = [rank_correlation(scores[rows], values[rows]) for rows in drawn]
    assert interval[1:] == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.03)
    assert interval.low < interval.estimate < interval.high
    assert all(math.isnan(value) for value in rank_correlation_interval(scores, np.zeros(60)))
