"""Linear reward programs from judgements: weights of features, and the program's text.

    reward = scale * sum of weight_f * (after_f - before_f) / deviation_f,   weight_f = (p_f - theta) / max |p - theta|

with p_f the judge's probability that it is good for the task when feature f grows, theta what it says of items without
content about the same task (Zhao et al. 2021, "Calibrate Before Use"), deviation_f the standard deviation of the
feature's change in a step of random play, and `scale` such that the sum has deviation 1 there.

Invariant: what the judge leaves undecided, or does not answer, has weight 0; the text compiles, and pays what the table
of features says.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from configs.errors import one_line
from llm_server.annotation import log_odds
from reward_models.programs.compiling import compile_program
from reward_models.programs.language import MAX_COMPONENTS

CONTENT_FREE = ("something", "feature", "...")
"""Items that say nothing; the judge's answers to them show its bias under a task."""
MAX_NAME = 32
"""Characters of a component's name."""
MAX_LINE = 600
"""Characters of one entry of the header, so that it fits into a program with the longest names."""
ROUNDING = 1e-6
"""Log-odds within which two probabilities count as equal."""
WIDTH = 120
"""Of lines of comments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFeature:
    """A feature that changes in random play, and what the judge says of it."""

    name: str
    probability: float
    """That more of it is good for the task; NaN without a usable answer."""
    deviation: float
    """Standard deviation of its change in a step."""
    weight: float
    """In [-1, 1]."""
    coefficient: float = 0.0
    """What the program pays for a change by one deviation; 0 where it leaves the feature out."""


def in_words(name: str) -> str:
    """A feature's name as the judge is shown it."""
    return " ".join(name.replace("_", " ").split())


def deviations_of(changes: np.ndarray) -> np.ndarray:
    """[F] of changes [N, F]: their standard deviation over the steps in which both values are known, 0 where none
    is."""
    known = np.isfinite(changes)
    num = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, changes, 0.0).astype(np.float64)
    mean = filled.sum(axis=0) / num
    return np.sqrt((np.where(known, filled - mean, 0.0) ** 2).sum(axis=0) / num)


def theta_of(probabilities: np.ndarray, otherwise: float) -> float:
    """Theta for a task: the mean, in log-odds, of the probabilities [C] of items without content; `otherwise` where the
    judge answers none."""
    odds = log_odds(probabilities[np.isfinite(probabilities)])
    return float(1.0 / (1.0 + np.exp(-odds.mean()))) if odds.size else otherwise


def weights_of(probabilities: np.ndarray, theta: float, noise: float) -> np.ndarray:
    """[F] in [-1, 1], of the judge's probabilities [F]; 0 where it has none, or one whose log-odds are within `noise`
    of theta's."""
    distances = np.abs(log_odds(probabilities) - log_odds(theta))
    is_decided = np.isfinite(probabilities) & (distances > max(noise, ROUNDING))
    from_theta = np.where(is_decided, probabilities - theta, 0.0)
    return from_theta / max(float(np.abs(from_theta).max(initial=0.0)), np.finfo(np.float64).tiny)


def exchanged_signs(weights: np.ndarray, seed: int) -> np.ndarray:
    """The weights [F] with their signs permuted among the features that have one, at random, but never as they were.
    Raises ValueError where all signs are equal."""
    chosen = np.flatnonzero(weights)
    signs = np.sign(weights[chosen])
    if np.all(signs == signs[:1]):
        sign = "good" if signs[:1] > 0 else "bad"
        raise ValueError(f"--permute: got {len(signs)} features that are all judged {sign}, wanted some of each sign")
    rng, permuted = np.random.default_rng(seed), signs
    while np.array_equal(permuted, signs):
        permuted = rng.permutation(signs)
    exchanged = weights.copy()
    exchanged[chosen] = permuted * np.abs(weights[chosen])
    return exchanged


def scaled(features: Sequence[JudgedFeature], changes: np.ndarray) -> list[JudgedFeature]:
    """The features, whose changes are [N, F], with their coefficients: of the largest weights, as many as a program has
    components. Raises ValueError where their sum never changes."""
    order = sorted(range(len(features)), key=lambda place: -abs(features[place].weight))[:MAX_COMPONENTS]
    kept = [place for place in order if features[place].weight]
    per_change = np.array([features[place].weight / features[place].deviation for place in kept])
    total = np.nan_to_num(changes[:, kept] @ per_change)
    deviation = float(total.std())
    if not deviation > 1e-6:
        names = ", ".join(features[place].name for place in kept)
        raise ValueError(f"the weighted changes of {names} cancel in every step, wanted a sum that changes")
    return [
        replace(feature, coefficient=feature.weight / deviation if place in kept else 0.0)
        for place, feature in enumerate(features)
    ]


def program_text(features: Sequence[JudgedFeature], names: Sequence[str], header: Sequence[str]) -> str:
    """The program of the features that have a coefficient, the largest first, under `header` as comments; `names` are
    all of the environment. Raises ValueError (ProgramError) where it breaks a limit of the language."""
    paid = sorted((f for f in features if f.coefficient), key=lambda f: -abs(f.coefficient))
    lines = [part for line in header for part in _comment(one_line(line, MAX_LINE), "# ")]
    lines += ["", "", "def reward(before, after, start, action):", "    return {"]
    for f in paid:
        change = f"(after.{f.name} - before.{f.name}) / {f.deviation:.6g}"
        lines += _comment(f"{in_words(f.name)}: p = {f.probability:.3f}, weight {f.weight:+.3f}", "        # ")
        lines.append(f'        "{_component(f.name, names)}": {f.coefficient:.6g} * {change},')
    text = "\n".join([*lines, "    }", ""])
    compile_program(text, names)
    return text


def _comment(line: str, begin: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, initial_indent=begin, subsequent_indent=begin)


def _component(name: str, names: Sequence[str]) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}_{names.index(name):02d}"
