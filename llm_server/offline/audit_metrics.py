"""How well scores agree with labels: area under the ROC curve with an interval, accuracy at a threshold, calibration,
pairs; rank correlation with graded labels; and `reward_precision`, the share of the intrinsic reward paid that went to
captions labelled as progress.

Invariant: pure functions of numpy arrays; undefined values (of a single class, or no item) are NaN. Labels are bool
[N], scores and probabilities f64 [N] and finite throughout. Captions without a label do not enter `reward_precision`,
and their share of the reward is reported.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

SEPARATOR = "  "
"""Separates the messages of one caption."""
NUM_SHOWN = 20
NUM_RESAMPLES = 2000
NUM_BINS = 10
NORMAL_975 = 1.959964
"""The standard normal distribution's 97.5 % quantile."""
MAX_TABLE = 4_000_000
"""Counts held at once while resampling."""


def precision_metrics(paid: Mapping[str, float], labels: Mapping[str, bool]) -> dict[str, Any]:
    """Metrics of the reward `paid` by caption, with `labels` of captions or messages: its precision (None without a
    label), the share of it that is labelled, and the captions without a label that were paid most."""
    mass: dict[bool | None, float] = {True: 0.0, False: 0.0, None: 0.0}
    unlabelled: dict[str, float] = {}
    for text, reward in paid.items():
        verdict = label_of(text, labels)
        mass[verdict] += reward
        if verdict is None:
            unlabelled[text] = reward
    known, total = mass[True] + mass[False], sum(mass.values())
    most = sorted(unlabelled, key=lambda text: (-unlabelled[text], text))[:NUM_SHOWN]
    return {
        "reward_precision": mass[True] / known if known else None,
        "reward_labelled_fraction": known / total if total else None,
        "reward_captions": len(paid),
        "reward_unlabelled": [{"caption": text, "share": unlabelled[text] / total} for text in most],
    }


def label_of(text: str, labels: Mapping[str, bool]) -> bool | None:
    """A caption's own label, else that of its messages: True if one is, False if all are False, else None."""
    if text in labels:
        return labels[text]
    verdicts = [labels.get(message.strip()) for message in text.split(SEPARATOR)]
    return True if True in verdicts else None if None in verdicts else False


class Interval(NamedTuple):
    """An estimate with the bounds of its 95 % interval."""

    estimate: float
    low: float
    high: float


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """P(a positive's score exceeds a negative's), ties counting half (Mann-Whitney); NaN where a class is missing."""
    positives, negatives = _histograms(scores, labels)
    return float(_auc(positives[None], negatives[None])[0])


def auc_interval(
    scores: np.ndarray, labels: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """`auc` with its 2.5 % and 97.5 % percentiles over a bootstrap that resamples within each class (Efron 1979).

    Resampling a class with replacement is a multinomial draw over its distinct scores, so no resample is ever sorted.
    """
    positives, negatives = _histograms(scores, labels)
    if not positives.sum() or not negatives.sum():
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    at_once = max(1, MAX_TABLE // len(positives))
    resampled = []
    for start in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - start)
        # [size, V] each
        drawn = [rng.multinomial(counts.sum(), counts / counts.sum(), size) for counts in (positives, negatives)]
        resampled.append(_auc(*drawn))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return Interval(auc(scores, labels), float(low), float(high))


def accuracy_interval(scores: np.ndarray, labels: np.ndarray, threshold: float) -> Interval:
    """Share of items whose `score > threshold` equals their label, with the 95 % interval of Wilson (1927); NaN without
    items."""
    share, number = _mean((scores > threshold) == labels), max(1, len(labels))
    spread = NORMAL_975**2 / number
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return (
        Interval(share, max(0.0, middle - half), min(1.0, middle + half)) if len(labels) else Interval(*3 * (math.nan,))
    )


def balanced_accuracy(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    """Mean of the accuracies on positives and on negatives; NaN where a class is missing."""
    correct = (scores > threshold) == labels
    return (_mean(correct[labels]) + _mean(correct[~labels])) / 2


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: over bins of equal width, the gap between mean probability and share of positives,
    weighted by the items in the bin (Naeini et al. 2015; Guo et al. 2017, eq. 3). 0 is perfect; NaN for no items."""
    if not len(labels):
        return math.nan
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    claimed = np.bincount(bins, weights=probabilities, minlength=num_bins)
    found = np.bincount(bins, weights=labels, minlength=num_bins)
    return float(np.abs(claimed - found).sum() / len(labels))


class PairAgreement(NamedTuple):
    """How pairs of a positive and a negative item were judged."""

    accuracy: float
    """Share of pairs in which the positive item was preferred; a tie counts half."""
    position_bias: float
    """Mean log-odds that being shown first is worth."""
    order_flips: float
    """Share of pairs whose answer changes with the order in which they are shown."""


def pair_agreement(preferences: np.ndarray, position_biases: np.ndarray) -> PairAgreement:
    """From p(the positive item is better) [N], averaged over both orders in log-odds, and the position's log-odds
    [N]."""
    safe = np.clip(preferences, 1e-12, 1 - 1e-12)
    flips = np.abs(position_biases) > np.abs(np.log(safe / (1 - safe)))
    wins = (preferences > 0.5) + 0.5 * (preferences == 0.5)
    return PairAgreement(_mean(wins), _mean(position_biases), _mean(flips))


def rank_correlation(scores: np.ndarray, values: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Spearman's rank correlation, equal numbers sharing their mean rank; NaN where one of the two has a single value.
    `counts` [N] is how often each item occurs, by default once."""
    counts = np.ones(len(scores)) if counts is None else counts
    occurs = counts > 0
    if min(len(np.unique(scores[occurs])), len(np.unique(values[occurs]))) < 2:
        return math.nan
    x, y = (_centred_ranks(each, counts) for each in (scores, values))
    return float((counts * x * y).sum() / math.sqrt((counts * x * x).sum() * (counts * y * y).sum()))


def rank_correlation_interval(
    scores: np.ndarray, values: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """`rank_correlation` with its 2.5 % and 97.5 % percentiles over a bootstrap of the items (Efron 1979), without the
    resamples in which it is undefined."""
    estimate = rank_correlation(scores, values)
    if math.isnan(estimate):
        return Interval(math.nan, math.nan, math.nan)
    rng, evenly = np.random.default_rng(seed), np.full(len(scores), 1 / len(scores))
    drawn = (rng.multinomial(len(scores), evenly) for _ in range(num_resamples))
    low, high = np.nanpercentile([rank_correlation(scores, values, counts) for counts in drawn], [2.5, 97.5])
    return Interval(estimate, float(low), float(high))


def _centred_ranks(numbers: np.ndarray, counts: np.ndarray) -> np.ndarray:
    _, places = np.unique(numbers, return_inverse=True)
    occur = np.bincount(places, weights=counts)
    ranks = (np.cumsum(occur) - occur / 2)[places]
    return ranks - np.average(ranks, weights=counts)


def _histograms(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of positives and of negatives with each distinct score, in ascending order: [V] each."""
    values, places = np.unique(scores, return_inverse=True)
    return np.bincount(places[labels], minlength=len(values)), np.bincount(places[~labels], minlength=len(values))


def _auc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """AUC per row from counts by ascending distinct score: [R, V], [R, V] -> [R]."""
    below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (below + 0.5 * negatives)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(wins), math.nan), where=pairs > 0)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan
