"""The words of annotation: `Caption`, `Judgement`, and the same of pairs.

Invariant: a judgement that is not OK carries no probability that anything may use as a label.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np

EDGE = 1e-6
"""Probabilities nearer to 0 or 1 have no finite log-odds to speak of."""


def log_odds(probabilities: np.ndarray | float) -> np.ndarray:
    """log(p / (1 - p)) as f64 in the shape of `probabilities`, within +-13.8."""
    p = np.clip(np.asarray(probabilities, np.float64), EDGE, 1.0 - EDGE)
    return np.log(p) - np.log1p(-p)


class Status(Enum):
    """What became of one item."""

    OK = 1
    """The probability is a label."""
    UNPARSED = 2
    """The model's answer was not among the allowed ones (answer mass below the rubric's minimum, or NaN)."""
    REJECTED = 3
    """The item itself could not be asked (for example, not valid UTF-8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A distinct normalised caption (caption book -> annotator, reward models)."""

    id: int
    """64-bit xxh3 of the normalised text; 0 is the empty caption."""
    text: str
    """The normalised text."""


class _Answered(NamedTuple):
    probability: float
    """p(positive answer) / (p(positive) + p(negative))."""
    answer_mass: float
    """p(positive) + p(negative), over the whole vocabulary."""


class Score(_Answered):
    """A model's answer about one text as it is read off (engine -> judge); NaN where the model's numbers broke. As a tuple it is
    the probability and the answer mass."""

    shares: tuple[float, ...]
    """Each answer's part of the answer mass, in the order of `Question.answers`; empty where the engine does not say."""

    def __new__(cls, probability: float, answer_mass: float, shares: tuple[float, ...] = ()) -> "Score":
        """`shares` is kept beside the tuple."""
        score = super().__new__(cls, probability, answer_mass)
        score.shares = shares
        return score


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The LLM's answer about one item (service -> annotator -> reward models)."""

    status: Status
    probability: float
    """p(positive answer) / (p(positive) + p(negative)); NaN unless OK."""
    answer_mass: float
    """p(positive) + p(negative): how much of the model's belief lies on the allowed answers."""
    cached: bool = False
    """Read from the store; no forward pass was made for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCaption:
    """A caption and what was said of it (annotator -> reward model)."""

    caption: Caption
    judgement: Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionPair:
    """Two captions to be compared (annotator -> service)."""

    first: Caption
    second: Caption


@dataclass(frozen=True, slots=True, kw_only=True)
class PairJudgement:
    """Which of two items is more progress (service -> annotator -> reward models); asked in both orders."""

    status: Status
    """OK where both orders were answered."""
    preference: float
    """p(the first is better): the two orders averaged in log-odds, so that what the place alone is worth cancels; 0.5 is a
    tie; NaN unless OK."""
    answer_mass: float
    """The smaller of both orders' probability of the allowed answers together."""
    position_bias: float
    """Log-odds that being shown first is worth, positive where the model favours the first place; NaN unless OK."""
    cached: bool = False
    """Both orders were read from the store."""
    singles: tuple[float, float] | None = None
    """The judgements of both items alone, where the preference was made of those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """A pair and what was said of it (annotator -> reward model)."""

    pair: CaptionPair
    judgement: PairJudgement


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedCaption:
    """A caption and how near it lies to each goal sentence (annotator -> reward model)."""

    caption: Caption
    cosines: np.ndarray
    """[G] f32, cosine with each goal in the order of the goals; NaN where the caption could not be embedded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDescription:
    """What a service says of itself (`Describe`)."""

    model: str
    engine: str
    fingerprint: str
    """Hash of the weights, the prompt's version, engine, device and dtype: part of the store's key."""
    rubric_id: str
    rubric_version: str
    rubric_hash: str
    """Hash of the rubric's content: part of the store's key."""
    pairs_hash: str
    """Likewise of how the rubric compares pairs; empty where it does not."""
    threshold: float
    """The rubric's theta for this model."""
    max_items_per_request: int
    max_item_bytes: int
    forward_passes: int
    """Items that a forward pass was spent on since the service started."""
    engine_busy_s: float = 0.0
    """Seconds that the engine has been at its present batch; 0 where it waits for one."""
    noise: float = 0.0
    """Log-odds by which an answer may differ between processors and batches: so near to theta an item is undecided."""

    @property
    def pays_above(self) -> float:
        """The probability above which an item is positive on every processor: theta and the noise above it."""
        return (
            float(1.0 / (1.0 + np.exp(-(log_odds(self.threshold) + self.noise))))
            if 0.0 < self.threshold < 1.0
            else self.threshold
        )

    def is_undecided(self, judgement: Judgement) -> bool:
        """Whether a label lies within the noise of theta: neither a yes nor a no."""
        return (
            judgement.status is Status.OK
            and abs(float(log_odds(judgement.probability) - log_odds(self.threshold))) <= self.noise
        )

    @property
    def identity(self) -> tuple[str, str, str]:
        """What must be equal for labels to be mixed. Theta follows from it but for rounding, and is not part of it."""
        return self.fingerprint, self.rubric_hash, self.pairs_hash


def signed_id(caption_id: int) -> int:
    """A caption id as SQLite keeps it, whose integers are signed: the upper half of the 64-bit ids is negative."""
    return caption_id - 2**64 if caption_id >= 2**63 else caption_id


def unsigned_id(number: int) -> int:
    """The caption id that `signed_id` made `number` of."""
    return number % 2**64
