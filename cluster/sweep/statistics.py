"""Statistics over few runs: interquartile mean, stratified bootstrap, performance profile, probability of improvement,
permutation test, Holm's correction.

Invariant: seeded, so the same values give the same figures; the unit is a run. The formulas are those of Agarwal et al.
2021 (Deep reinforcement learning at the edge of the statistical precipice) unless said, and give what their library
`rliable` gives; all resamples are computed at once, which takes a hundredth of its time.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

RESAMPLES = 10_000
MAX_SPLITS = 200_000
"""Up to so many splits of the runs a permutation test looks at all of them (10 against 10 runs have 184,756)."""
CHUNK = 20_000
"""Random splits that are made at once."""

Strata = Sequence[Sequence[float]]
"""Values of runs, one sequence for each part (a task, a permutation of a control) whose share must not change when runs
are resampled."""


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """[..., N] -> [...]: the mean of what is left without the lowest and the highest quarter (floor(N / 4) values at
    either end, as scipy's trim_mean)."""
    ordered, cut = np.sort(values, axis=-1), values.shape[-1] // 4
    return ordered[..., cut : values.shape[-1] - cut].mean(axis=-1)


def estimate(strata: Strata, statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean) -> dict[str, float]:
    """`value` of a statistic over all runs, with `low` and `high`, its 95 % percentile interval of a bootstrap within
    each stratum."""
    resampled = statistic(_resampled(strata, np.random.default_rng(0)))
    return _with_interval(float(statistic(np.concatenate(strata))), resampled)


def profile(strata: Strata, levels: Sequence[float]) -> list[dict[str, float]]:
    """The share of runs above each level (their performance profile), as `estimate`."""
    return [estimate(strata, partial(_above, level=level)) for level in levels]


def improvement(first: Sequence[Strata], second: Sequence[Strata]) -> dict[str, float]:
    """P(a run of `first` exceeds one of `second` in the same task), ties counted half, the mean over tasks, with its
    95 % interval; the runs of each are given by task, and within a task by stratum."""
    rng = np.random.default_rng(0)
    value = np.mean([_better(np.concatenate(a), np.concatenate(b)) for a, b in zip(first, second, strict=True)])
    of_tasks = [_better(_resampled(a, rng), _resampled(b, rng)) for a, b in zip(first, second, strict=True)]
    return _with_interval(float(value), np.mean(of_tasks, axis=0))


def difference(first: Sequence[Strata], second: Sequence[Strata]) -> dict[str, float]:
    """mean(first) - mean(second), the means over tasks, with its 95 % interval; runs are given as for
    `improvement`."""
    (above, resampled_above), (below, resampled_below) = _means([first, second])
    return _with_interval(above - below, resampled_above - resampled_below)


def share_of_gain(middle: Sequence[Strata], low: Sequence[Strata], high: Sequence[Strata]) -> dict[str, float] | None:
    """(mean(middle) - mean(low)) / (mean(high) - mean(low)), the means over tasks, with its 95 % interval; None where
    `high` is not above `low` in every resample, so that a share has no meaning. Runs are given as for `improvement`."""
    of_middle, of_low, of_high = _means([middle, low, high])
    if (of_high[1] <= of_low[1]).any():
        return None
    value = (of_middle[0] - of_low[0]) / (of_high[0] - of_low[0])
    return _with_interval(value, (of_middle[1] - of_low[1]) / (of_high[1] - of_low[1]))


def permutation_test(first: Strata, second: Strata) -> float:
    """One-sided p of mean(first) > mean(second), the means over tasks: the runs of each are given by task.

    The share of ways to split each task's runs, as many to each side as there are, whose difference is at least as
    large: of all ways for one task with at most MAX_SPLITS, else of MAX_SPLITS random ones and the actual one (Phipson
    and Smyth 2010)."""
    tasks = [(np.concatenate([a, b]).astype(np.float64), len(a)) for a, b in zip(first, second, strict=True)]
    if len(tasks) == 1 and math.comb(len(tasks[0][0]), tasks[0][1]) <= MAX_SPLITS:
        joined, size = tasks[0]
        splits = np.array(list(itertools.combinations(range(len(joined)), size)), np.int16)
        # The sum of the first decides the difference of means.
        return float((joined[splits].sum(axis=1) >= joined[:size].sum() - 1e-9).mean())
    rng, at_least = np.random.default_rng(0), 0
    observed = sum(_difference(joined[None], size)[0] for joined, size in tasks) - 1e-9
    for _ in range(MAX_SPLITS // CHUNK):
        drawn = [_difference(rng.permuted(np.tile(joined, (CHUNK, 1)), axis=1), size) for joined, size in tasks]
        at_least += int((np.sum(drawn, axis=0) >= observed).sum())
    return (at_least + 1) / (MAX_SPLITS + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (Holm 1979) of a family of tests, by name: reject where it is at most the level of
    the family."""
    adjusted, so_far = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = so_far
    return {name: adjusted[name] for name in p_values}


def _above(runs: np.ndarray, level: float) -> np.ndarray:
    """[..., N] -> [...]: the share of runs above the level."""
    return (runs > level).mean(axis=-1)


def _difference(joined: np.ndarray, size: int) -> np.ndarray:
    """[..., N] -> [...]: the mean of the first `size` minus that of the others."""
    return joined[..., :size].mean(axis=-1) - joined[..., size:].mean(axis=-1)


def _better(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[..., N], [..., M] -> [...]"""
    difference = first[..., :, None] - second[..., None, :]
    return (difference > 0).mean(axis=(-2, -1)) + 0.5 * (difference == 0).mean(axis=(-2, -1))


def _means(sides: Sequence[Sequence[Strata]]) -> list[tuple[float, np.ndarray]]:
    """Of each side: the mean over tasks of the mean of the runs, and the same of RESAMPLES resamples; every side is
    resampled on its own."""
    rng = np.random.default_rng(0)
    return [
        (
            float(np.mean([np.concatenate(task).mean() for task in side])),
            np.mean([_resampled(task, rng).mean(axis=1) for task in side], axis=0),
        )
        for side in sides
    ]


def _resampled(strata: Strata, rng: np.random.Generator) -> np.ndarray:
    """[RESAMPLES, N], each row's runs drawn with replacement within their stratum."""
    return np.concatenate([rng.choice(np.asarray(runs, np.float64), (RESAMPLES, len(runs))) for runs in strata], axis=1)


def _with_interval(value: float, resampled: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}
