"""The calibration of one model under one rubric: its bias towards each answer, theta, and the noise of its answers.

Invariant: a function of model and rubric alone, so equal where the model's numbers are equal; theta lies in `BOUNDS`.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llm_server.annotation import Score, log_odds
from llm_server.engines.engine import Engine
from llm_server.rubrics.rubric import AboutItem, Rubric

LOG = logging.getLogger(__name__)
BOUNDS = (0.1, 0.6)
"""Range of theta: outside, the model says yes to almost nothing (below), or to almost everything (above)."""
NEGATIVE_PROBABILITY = 0.1
"""The probability of negative items on average (taken over log-odds), once the bias is subtracted."""
NOISE = {"float32": 1e-3, "bfloat16": 0.25, "logprobs": 0.25}
"""Log-odds by which answers differ between processors and batches, by the ending of the engine's name. Measured:
float32 at most 1e-4; bfloat16 0.06 between batches and 0.23 from float32; endpoints are assumed to use bfloat16."""
SMALLEST_SHARE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """How to read a model's answers under one rubric without its bias."""

    threshold: float
    """Theta."""
    noise: float
    """See `ServiceDescription.noise`."""
    decided_by: tuple[str, ...] = ()
    """The calibration items nearest to theta, below and above; empty where the rubric sets theta."""
    bias: tuple[float, ...] = field(default=(), repr=False)
    """Log-odds to subtract from each answer; empty for two answers, whose bias theta absorbs, and for graded answers
    without calibration items."""
    weights: tuple[float, ...] = field(default=(), repr=False)

    def probability(self, score: Score) -> float:
        """The probability of the positive answers; of graded answers the expected value."""
        return _unbiased(score, self.bias, self.weights) if self.bias else score.probability


def calibrate(engine: Engine, rubric: Rubric) -> Calibrated:
    """Ask `engine` about the rubric's calibration items; ValueError where it gives no usable answer to them."""
    noise = next((value for name, value in NOISE.items() if name in engine.name.rpartition("/")[2]), 0.0)
    if not engine.needs_calibration:
        return Calibrated(threshold=0.5 if rubric.threshold is None else rubric.threshold, noise=noise)
    has_bias = bool(rubric.positive_kinds or (rubric.answers and rubric.calibration.items))
    is_needed = rubric.threshold is None or has_bias
    negatives = _scores(engine, rubric, rubric.calibration.items) if is_needed else {}
    weights = rubric.question().weights
    bias = _bias(list(negatives.values()), weights) if has_bias else ()
    calibrated = Calibrated(threshold=math.nan, noise=noise, bias=bias, weights=weights)
    if rubric.threshold is not None:
        return replace(calibrated, threshold=rubric.threshold)
    positives = _scores(engine, rubric, rubric.calibration.positives)
    below = {item: calibrated.probability(score) for item, score in negatives.items()}
    above = {item: calibrated.probability(score) for item, score in positives.items()}
    theta, decided_by = _threshold(below, above, rubric)
    bounded = min(max(theta, BOUNDS[0]), BOUNDS[1])
    if bounded != theta:
        said = f"rubric '{rubric.id}' would have theta {theta:.3f} for model '{engine.model}'"
        items = " and ".join(map(repr, decided_by))
        LOG.warning("%s, set by %s: it is held at %.1f; change the calibration items", said, items, bounded)
        theta = bounded
    return replace(calibrated, threshold=theta, decided_by=decided_by)


def _scores(engine: Engine, rubric: Rubric, items: Sequence[str | AboutItem]) -> dict[str, Score]:
    texts = [text for item in items if (text := rubric.shown_text(item))]
    answers = zip(texts, engine.score(texts), strict=True)
    scores = {text: score for text, score in answers if math.isfinite(score.probability)}
    if texts and not scores:
        items_of = f"any calibration item of rubric '{rubric.id}'"
        raise ValueError(f"'{engine.model}' gives no usable answer to {items_of}: use another model or dtype")
    return scores


def _bias(negatives: Sequence[Score], weights: Sequence[float]) -> tuple[float, ...]:
    """The mean logarithm of each answer's share over negative items, so that what every item gives an answer cancels
    (Zhao et al. 2021, "Calibrate Before Use"); shifted so that these items get `NEGATIVE_PROBABILITY` on average."""
    shares = [score.shares for score in negatives if len(score.shares) == len(weights)]
    if not shares:
        return ()
    bias = np.log(np.maximum(shares, SMALLEST_SHARE)).mean(axis=0)
    centred = [float(log_odds(_unbiased(Score(0.0, 0.0, one), bias.tolist(), weights))) for one in shares]
    shift = float(np.mean(centred)) - float(log_odds(NEGATIVE_PROBABILITY))
    return tuple((bias + shift * np.array(weights)).tolist())


def _unbiased(score: Score, bias: Sequence[float], weights: Sequence[float]) -> float:
    if len(score.shares) != len(bias):
        return math.nan
    logits = np.log(np.maximum(score.shares, SMALLEST_SHARE)) - np.array(bias)
    shares = np.exp(logits - logits.max())
    return float(shares @ np.array(weights) / shares.sum())


def _threshold(
    negatives: dict[str, float], positives: dict[str, float], rubric: Rubric
) -> tuple[float, tuple[str, ...]]:
    """Theta and the items that set it.

    Without positives, the highest negative's log-odds plus a margin. With them, the midpoint between neighbours that is
    right most often, a negative counting `negatives_per_positive` times; of equally good ones, the midpoint of the
    widest gap.
    """
    if not positives:
        item = max(negatives, key=lambda name: negatives[name])
        return _probability(float(log_odds(negatives[item])) + rubric.calibration.margin), (item,)
    probabilities = negatives | positives
    ordered = sorted(probabilities, key=lambda name: probabilities[name])
    odds = log_odds(np.array([probabilities[name] for name in ordered]))
    is_positive = np.array([name in positives for name in ordered])
    kept = is_positive[::-1].cumsum()[::-1] / is_positive.sum()  # positives at or above each place
    let_in = (~is_positive)[::-1].cumsum()[::-1] / max((~is_positive).sum(), 1)
    value = np.round(kept - rubric.calibration.negatives_per_positive * let_in, 9)[1:]
    gaps = np.diff(odds)
    place = int(np.lexsort((gaps, value))[-1])
    return _probability(float(odds[place] + odds[place + 1]) / 2), (ordered[place], ordered[place + 1])


def _probability(odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-odds))
