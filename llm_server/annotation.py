"""The types of annotation: `Caption`, `Judgement` and their counterparts for pairs, and `Writing`.

Invariant: a judgement that is not OK carries no probability that could be used as a label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np

EDGE = 1e-6
"""Probabilities are clipped to [EDGE, 1 - EDGE], so that log-odds are finite."""


def log_odds(probabilities: np.ndarray | float) -> np.ndarray:
    """log(p / (1 - p)) as f64 in the shape of `probabilities`, within +-13.8."""
    p = np.clip(np.asarray(probabilities, np.float64), EDGE, 1.0 - EDGE)
    return np.log(p) - np.log1p(-p)


class Status(Enum):
    """The outcome for one item."""

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
    """The expected value of the answers: p(positive) / (p(positive) + p(negative)) where there are two."""
    answer_mass: float
    """The probability of all answers together, over the whole vocabulary."""


class Score(_Answered):
    """A model's raw answer about one text (engine -> judge); NaN where the model's numbers are not finite. As a tuple
    it is the probability and the answer mass."""

    shares: tuple[float, ...]
    """Each answer's part of the answer mass, in the order of `Question.answers`; empty where the engine gives none."""

    def __new__(cls, probability: float, answer_mass: float, shares: tuple[float, ...] = ()) -> "Score":
        """`shares` is an attribute, not an element of the tuple."""
        score = super().__new__(cls, probability, answer_mass)
        score.shares = shares
        return score


class Written(NamedTuple):
    """What a model wrote, not parsed yet (engine -> writing desk)."""

    text: str
    """Without what stopped it; empty where nothing was written, or the model was not asked."""
    tokens: int
    is_cut: bool = False
    """The token limit ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The LLM's answer about one item (service -> annotator -> reward models)."""

    status: Status
    probability: float
    """The expected value of the answers, in [0, 1]: p(positive) / (p(positive) + p(negative)) where there are two; NaN
    unless OK."""
    answer_mass: float
    """The probability mass on the allowed answers."""
    cached: bool = False
    """Read from the store; no forward pass was made for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCaption:
    """A caption and its judgement (annotator -> reward model)."""

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
    """p(the first is better), the mean of both orders in log-odds, free of position bias; 0.5: a tie; NaN unless OK."""
    answer_mass: float
    """The smaller of the two orders' answer masses."""
    position_bias: float
    """Log-odds gained by being shown first, positive where the model favours the first place; NaN unless OK."""
    cached: bool = False
    """Both orders were read from the store."""
    singles: tuple[float, float] | None = None
    """The probabilities of both items judged alone, where the preference was computed from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """A pair and its judgement (annotator -> reward model)."""

    pair: CaptionPair
    judgement: PairJudgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """What the LLM wrote by a brief (service -> whoever asked): data like a caption, never an instruction."""

    status: Status
    """OK where the answer could be parsed, UNPARSED where not, REJECTED where a field is no text."""
    text: str
    """The parsed answer: one printable line, of the kind `lines` one per entry; empty unless OK."""
    tokens: int
    """Tokens that the model wrote."""
    cached: bool = False
    """Read from the store; the model wrote nothing for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedCaption:
    """A caption and its similarity to each goal sentence (annotator -> reward model)."""

    caption: Caption
    cosines: np.ndarray
    """[G] f32, cosine with each goal in the order of the goals; NaN where the caption could not be embedded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedCaption:
    """A caption's judgement and sentence vector, by which it is matched with goals (annotator -> reward model)."""

    caption: Caption
    judgement: Judgement
    """Of the caption alone; without a probability where only what it achieves was judged, or nothing."""
    vector: np.ndarray
    """[D] f32 of unit length; NaN where the caption could not be embedded."""
    achieves: Mapping[int, float] = field(default_factory=dict)
    """By goal that it was judged about, the probability that it achieves the goal; NaN without a usable answer."""
    num_goals: int = 0
    """How many goals there were then, where it was judged about its nearest."""
    num_judged: int = 1
    """Judgements that were made for it, cached ones left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDescription:
    """A service's description of itself (`Describe`)."""

    model: str
    engine: str
    fingerprint: str
    """Hash of the weights, the prompt's version, engine, device and dtype: part of the store's key."""
    rubric_id: str
    rubric_version: str
    rubric_hash: str
    """Hash of the rubric's content: part of the store's key."""
    pairs_hash: str
    """Hash of the rubric's `pairs` section; empty where it has none."""
    threshold: float
    """The rubric's theta for this model."""
    max_items_per_request: int
    max_item_bytes: int
    forward_passes: int
    """Items that went through the model since the service started."""
    engine_busy_s: float = 0.0
    """Seconds that the engine has spent on its current batch; 0 where it has none."""
    noise: float = 0.0
    """Log-odds by which answers differ between processors and batches; an item this near to theta is undecided."""
    writes: bool = False
    """Whether it can write by a brief."""

    @property
    def pays_above(self) -> float:
        """The probability above which an item is positive on every processor: theta plus the noise."""
        if not 0.0 < self.threshold < 1.0:
            return self.threshold
        return float(1.0 / (1.0 + np.exp(-(log_odds(self.threshold) + self.noise))))

    def num_undecided(self, probabilities: Sequence[float] | np.ndarray) -> int:
        """How many of these answers lie within the noise of theta and so are neither a yes nor a no; NaN, which is no
        label, does not."""
        distances = np.abs(log_odds(np.asarray(probabilities, np.float64)) - log_odds(self.threshold))
        return int((distances <= self.noise).sum())

    @property
    def identity(self) -> tuple[str, str, str]:
        """Labels may be mixed only where this is equal. It determines theta, up to rounding, which is left out."""
        return self.fingerprint, self.rubric_hash, self.pairs_hash


def signed_id(caption_id: int) -> int:
    """A caption id as SQLite's signed 64-bit integer: the upper half of the ids becomes negative."""
    return caption_id - 2**64 if caption_id >= 2**63 else caption_id


def unsigned_id(number: int) -> int:
    """The caption id of a signed id; the inverse of `signed_id`."""
    return number % 2**64
