"""`RewardModel`: the base class of what turns answers of the LLM into one number per caption.

Invariant: a reward model is a function of the caption (and, to normalise, of the whole caption table), so it is evaluated once
per distinct caption and version.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from typing import Any, TypeAlias

import numpy as np

from configs.annotation_schema import RewardModelConfig
from llm_server.annotation import Caption, EmbeddedCaption, JudgedCaption, JudgedPair

Evidence: TypeAlias = JudgedCaption | JudgedPair | EmbeddedCaption
"""What a reward model learns from; which of them is its `asks`."""


class Asks(Enum):
    """What a reward model learns from."""

    NOTHING = "nothing"
    """No service is asked: `learn` gets nothing."""
    JUDGEMENTS = "judgements"
    """`JudgedCaption`."""
    PAIRS = "pairs"
    """`JudgedPair`."""
    EMBEDDINGS = "embeddings"
    """`EmbeddedCaption`."""


class RewardModel(ABC):
    """Turns answers of the LLM into one number per caption; one contract test holds all models to it. Not thread-safe: its owner locks.

    A model says how captions `score`, and overrides what else is not as in a model that remembers nothing and trains nothing.
    """

    name: str
    asks: Asks
    depends_on_counts = False
    """Whether `score` changes with the counts alone, so that a table is due even where nothing was learnt."""
    takes_goals = False
    """Whether it reads `reward_model.goals`."""

    def __init__(self, config: RewardModelConfig, seed: int = 0) -> None:
        """Weights, where there are any, are drawn from `seed`; ValueError for a wrong setting."""
        self._is_frozen = False

    @abstractmethod
    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """R per caption, [N] f32; NaN where the model has nothing to say yet (such captions stay out of the table).

        `captions` is the whole table and `counts` [N] i64 how often each has occurred in the run: what normalises is computed here.
        """

    @abstractmethod
    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """How far each caption lies above the threshold of reward, [N] f64: the larger, the better the model thinks of it; in log-odds
        or standard deviations (embeddings: cosine). NaN where it has nothing to say. Normalised as in the last `score`. What is
        costly about a caption is computed here or in `score`, whichever comes first, and remembered until training changes it."""

    @property
    def is_settled(self) -> bool:
        """Whether `train` would change nothing: always true of models without gradients."""
        return True

    def calibrate(self, threshold: float) -> None:
        """Take the threshold that the judge's rubric and model call for: known once the service answers, and the same or a
        new one at each restart of it. A threshold that is configured goes before it."""

    def learn(self, evidence: Sequence[Evidence]) -> None:
        """Take new evidence in. Answers that are not OK must not become labels."""

    def train(self) -> Mapping[str, float]:
        """At most `steps_per_turn` gradient steps on all evidence so far; metrics (`accuracy`: on the held-out split)."""
        return {}

    def goals(self, captions: Sequence[Caption]) -> np.ndarray | None:
        """[N] i8, the goal that each caption reaches, -1 for none; None for a model that knows no goals, or pays them each time."""
        return None

    def retain(self, ids: Set[int]) -> None:
        """Forget what was remembered of single captions other than these: the rest has left the caption book."""

    def freeze(self, captions: Sequence[Caption], counts: np.ndarray) -> None:
        """Learn nothing more; normalise by this table from now on."""
        self._is_frozen = True

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to continue exactly, training included: nested dict of arrays and JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
