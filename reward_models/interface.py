"""`RewardModel`: the abstract base class of the models that turn the LLM's answers into one reward per caption.

Invariant: a reward is a function of the caption (and, for normalisation, of the whole caption table), so it is computed
once per distinct caption and version.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from typing import Any, TypeAlias

import numpy as np

from configs.annotation_schema import RewardModelConfig
from configs.reward_schema import RobustConfig
from llm_server.annotation import Caption, EmbeddedCaption, JudgedCaption, JudgedPair, MatchedCaption, Status
from llm_server.annotator.caption_texts import ids_of

Evidence: TypeAlias = JudgedCaption | JudgedPair | EmbeddedCaption | MatchedCaption
"""What a reward model learns from; its attribute `asks` says which of them."""
UNGUARDED = RobustConfig()
"""No safeguards."""


class Asks(Enum):
    """What a reward model asks the annotation service for."""

    NOTHING = "nothing"
    """The service is not asked, and `learn` gets nothing."""
    JUDGEMENTS = "judgements"  # `JudgedCaption`
    PAIRS = "pairs"  # `JudgedPair`
    EMBEDDINGS = "embeddings"  # `EmbeddedCaption`
    GOALS = "goals"  # `MatchedCaption`


class RewardModel(ABC):
    """Turns the LLM's answers into one reward per caption; a contract test checks every model. Not thread-safe: its
    owner locks. What is not abstract defaults to a model without state and training."""

    name: str
    asks: Asks
    depends_on_counts = False
    """Whether `score` depends on the counts, so that a new table is due even if nothing was learnt."""
    takes_goals = False
    """Whether it reads `reward_model.goals`."""
    is_trained = False
    """Whether it has networks, to which the safeguards in `robust` apply."""
    reads_texts = True
    """Whether scores are computed from texts, which takes time, and not looked up."""

    def __init__(self, config: RewardModelConfig, seed: int = 0, robust: RobustConfig = UNGUARDED) -> None:
        """Initial weights are drawn from `seed`; raises ValueError for a wrong setting."""
        self._is_frozen = False

    @abstractmethod
    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """R per caption, [N] f32; NaN where it is not known yet (such captions are left out of the table).

        `captions` is the whole table, over which rewards are normalised, and `counts` [N] i64 their occurrences in the
        run.
        """

    @abstractmethod
    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """The distance of each caption above the threshold of reward, [N] f64, in log-odds, standard deviations or
        cosine; NaN where it is not known yet. Normalised as in the last `score`. The expensive part is computed here or
        in `score`, whichever is called first, and cached until training changes it."""

    def deviations(self, captions: Sequence[Caption]) -> np.ndarray:
        """How far the networks of an ensemble disagree about each caption, [N] f64: their standard deviation, in the
        units of `margins` and normalised likewise; NaN where it is not known, and without an ensemble."""
        return np.full(len(captions), np.nan)

    @property
    def is_settled(self) -> bool:
        """Whether `train` would change nothing; always True for models without gradients."""
        return True

    @property
    def is_outdated(self) -> bool:
        """Whether anything but evidence and captions that `score` depends on has changed since its last call."""
        return False

    def calibrate(self, threshold: float) -> None:
        """Set the threshold of the judge's rubric and model. It is known once the service answers, and may change when
        the service restarts. A configured threshold overrides it."""

    def learn(self, evidence: Sequence[Evidence]) -> None:
        """Add new evidence. Answers that are not OK never become labels, and a frozen model learns nothing."""
        for item in () if self._is_frozen else evidence:
            if isinstance(item, EmbeddedCaption) or item.judgement.status is Status.OK:
                self._add(item)

    def _add(self, item: Evidence) -> None:
        """Add one answer, of the kind that the model asks for: `learn` calls this for those that may become labels."""

    def train(self) -> Mapping[str, float]:
        """Take at most `steps_per_turn` gradient steps on all evidence; returns `accuracy` on the held-out split."""
        return {}

    def adopt_confident(self, captions: Sequence[Caption], counts: np.ndarray) -> None:
        """Train on predictions about captions without an answer from now on, where these are sure enough (see
        `networks.pseudo_labels`). `captions` and `counts` as in `score`, which was called with them before."""

    def metrics(self) -> Mapping[str, float]:
        """Further catalogue metrics, those that are defined."""
        return {}

    def goals(self, captions: Sequence[Caption]) -> np.ndarray | None:
        """[N, 4] u64: the mask of the goals that each caption achieves, as of the last `score`; None if goals are
        not told apart."""
        return None

    def retain(self, ids: Set[int]) -> None:
        """Forget the state of all other captions, which have left the caption book."""

    def freeze(self, captions: Sequence[Caption], counts: np.ndarray) -> None:
        """Stop learning, and normalise over this table from now on."""
        self._is_frozen = True

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from exactly, training included: nested dicts of arrays and JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""


def without_empty(captions: Sequence[Caption], rewards: np.ndarray) -> np.ndarray:
    """`rewards` [N] as f32, 0 for the empty caption."""
    rewards = rewards.astype(np.float32)
    rewards[ids_of(captions) == 0] = 0.0
    return rewards
