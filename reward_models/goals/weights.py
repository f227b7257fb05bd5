"""What achieving a goal pays, by its relevance to the task, and how often the policy is given it.

Invariant: both are functions of the goal book and its statistics, so nothing else need be saved; goals that are not
active have weight 0 in both.
"""

import numpy as np

from configs.goal_schema import MAX_GOALS
from reward_models.goals.book import GoalBook
from reward_models.goals.statistics import GoalStatistics

MIN_SUCCESSES = 10
"""Of the task, before relevance is learnt."""
RIDGE = 0.01
"""Weight of the squared norm of the relevance model's coefficients, against the mean loss of an achievement."""
ITERATIONS = 50
TOO_EASY, TOO_HARD = 0.75, 0.05
"""Success rates above and below which `difficulty` draws no goal (WebRL, Qi et al. 2024, the band of its critic)."""
FLOOR = 0.2
"""Of `progress`: a goal's least weight, as a share of the mean."""


def relevance(vectors: np.ndarray, task: np.ndarray, statistics: GoalStatistics) -> np.ndarray:
    """[G] f64: the probability that an episode in which a goal was achieved was a success, were there as many successes
    as failures (after ELLA's relevance classifier, Mirchandani et al. 2021); 1 before there are MIN_SUCCESSES, or a
    failure.

    `vectors` [G, D] and `task` [D] are sentence vectors. A logistic model of their product, element by element, with an
    intercept and an L2 penalty, is fitted to all achievements so far, each weighted by the inverse of how many episodes
    of its kind there were; so a goal that was never achieved has the relevance of goals like it.
    """
    totals, num = statistics.totals, len(vectors)
    if totals["successes"] < MIN_SUCCESSES or totals["failures"] < 1:
        return np.ones(num)
    positive = totals["achieved_in_successes"][:num] / totals["successes"]
    negative = totals["achieved_in_failures"][:num] / totals["failures"]
    total = float((positive + negative).sum())
    if total == 0:
        return np.ones(num)
    features = vectors.astype(np.float64) * task
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    return logistic(np.hstack([features, np.ones((num, 1))]), positive / total, negative / total)


def logistic(features: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """[N] f64: the probabilities s(x w) of the rows x of `features` [N, D] at the w that minimises

        sum(positive log(1 + exp(-x w)) + negative log(1 + exp(x w))) + RIDGE/2 |w|^2,

    by Newton's method in w = features' a, N numbers instead of D (the representer theorem)."""
    kernel = features @ features.T
    scores = np.zeros(len(features))
    for _ in range(ITERATIONS):
        p = 1 / (1 + np.exp(-scores))
        curvature = (positive + negative) * p * (1 - p)
        target = curvature * scores + positive - (positive + negative) * p
        # (C K + RIDGE) a = C f + residual, and f = K a
        newer = kernel @ np.linalg.solve(curvature[:, None] * kernel + RIDGE * np.eye(len(features)), target)
        if np.abs(newer - scores).max(initial=0.0) < 1e-9:
            break
        scores = newer
    return 1 / (1 + np.exp(-scores))


def goal_weights(book: GoalBook, statistics: GoalStatistics, task: np.ndarray | None) -> np.ndarray:
    """[256] f32: what achieving each goal pays, coefficient not included: its relevance to the `task` [D], a sentence
    vector; 1 where that is None."""
    vectors = book.vectors
    relevances = np.ones(len(vectors)) if task is None or not len(vectors) else relevance(vectors, task, statistics)
    return payments(book.active(), relevances)


def sampling_weights(sampling: str, statistics: GoalStatistics, is_active: np.ndarray) -> np.ndarray:
    """[256] f32 >= 0: weights of drawing each of the active goals [256] bool by `goals.sampling`. Where `difficulty`
    leaves none, all active ones are equal; `progress` gives a goal that was never tried the largest weight, and each at
    least FLOOR of the mean, so that a change is noticed."""
    weights = is_active.astype(np.float64)
    if sampling == "difficulty":
        rates = statistics.success_rates
        inside = np.isnan(rates) | ((rates >= TOO_HARD) & (rates <= TOO_EASY))
        weights = weights * inside if (is_active & inside).any() else weights
    if sampling == "progress" and is_active.any():
        progress = statistics.progress
        known = progress[is_active & ~np.isnan(progress)]
        if known.sum() > 0:
            weights *= np.maximum(np.where(np.isnan(progress), known.max(), progress), FLOOR * known.mean())
    return weights.astype(np.float32)


def payments(is_active: np.ndarray, relevances: np.ndarray) -> np.ndarray:
    """[256] f32: what goals of these `relevances` [G] pay; 0 for inactive ones."""
    weights = np.zeros(MAX_GOALS, np.float32)
    weights[: len(relevances)] = relevances
    return np.where(is_active, weights, np.float32(0))
