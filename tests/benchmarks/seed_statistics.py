"""Statistics over few runs: interquartile mean, stratified bootstrap, probability of improvement, permutation test,
Holm's correction.

Invariant: seeded, so the same values give the same figures; the unit is a run. The formulas are those of Agarwal et al.
2021 (Deep reinforcement learning at the edge of the statistical precipice, the library `rliable`) unless said.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

RESAMPLES = 10_000
MAX_SPLITS = 200_000
"""Up to so many splits of the runs a permutation test looks at all of them (10 against 10 runs have 184,756)."""

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
    low, high = np.percentile(statistic(_resampled(strata, np.random.default_rng(0))), [2.5, 97.5])
    return {"value": float(statistic(np.concatenate(strata))), "low": float(low), "high": float(high)}


def improvement(first: Strata, second: Strata) -> dict[str, float]:
    """P(a run of `first` exceeds one of `second`), ties counted half, with its 95 % interval."""
    rng = np.random.default_rng(0)
    resampled = [_better(a, b) for a, b in zip(_resampled(first, rng), _resampled(second, rng), strict=True)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": _better(np.concatenate(first), np.concatenate(second)), "low": float(low), "high": float(high)}


def permutation_test(first: Sequence[float], second: Sequence[float]) -> float:
    """One-sided p of mean(first) > mean(second): the share of ways to split the runs whose difference is at least as
    large, of all ways where they are few enough, else of MAX_SPLITS random ones and the actual one (Phipson and Smyth
    2010)."""
    joined, size = np.concatenate([first, second]).astype(np.float64), len(first)
    observed = joined[:size].sum() - 1e-9  # the sum of the first decides the difference of means
    if math.comb(len(joined), size) <= MAX_SPLITS:
        splits = np.array(list(itertools.combinations(range(len(joined)), size)), np.int16)
        return float((joined[splits].sum(axis=1) >= observed).mean())
    rng = np.random.default_rng(0)
    at_least = sum(rng.permutation(joined)[:size].sum() >= observed for _ in range(MAX_SPLITS))
    return (at_least + 1) / (MAX_SPLITS + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (Holm 1979) of a family of tests, by name: reject where it is at most the level of
    the family."""
    adjusted, so_far = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = so_far
    return {name: adjusted[name] for name in p_values}


def _better(first: np.ndarray, second: np.ndarray) -> float:
    difference = np.asarray(first)[:, None] - np.asarray(second)
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def _resampled(strata: Strata, rng: np.random.Generator) -> np.ndarray:
    """[RESAMPLES, N], each row's runs drawn with replacement within their stratum."""
    return np.concatenate([rng.choice(np.asarray(runs, np.float64), (RESAMPLES, len(runs))) for runs in strata], axis=1)
