"""The retrieval reward model, where a caption's reward depends on the judge's own answer and nothing is trained; and
`ProbabilityReward`, the reward of a probability, which classification uses too.

Invariant: the state is one probability per labelled caption of the book; the order of judgements about different
captions does not matter. NaN (unknown, or no threshold yet) stays NaN.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from configs.annotation_schema import RewardModelConfig
from configs.reward_schema import RobustConfig
from llm_server.annotation import Caption, JudgedCaption, Status, log_odds
from llm_server.annotator.caption_texts import ids_of
from llm_server.annotator.id_rows import IdValues
from reward_models.interface import UNGUARDED, Asks, Evidence, RewardModel, without_empty

OUTPUTS = ("binary", "soft", "probability")


class RetrievalModel(RewardModel):
    """R is a function of the judge's probability, after ONI-Retrieval (arXiv 2410.23022)."""

    name = "retrieval"
    asks = Asks.JUDGEMENTS
    reads_texts = False

    def __init__(self, config: RewardModelConfig, seed: int = 0, robust: RobustConfig = UNGUARDED) -> None:
        super().__init__(config, seed, robust)
        self._reward, self._smoothing = ProbabilityReward(config), config.label_smoothing
        self._probabilities = IdValues()

    def calibrate(self, threshold: float) -> None:
        """Labels are stored as probabilities, so a new threshold applies to all of them."""
        self._reward.calibrate(threshold)

    def learn(self, evidence: Sequence[Evidence]) -> None:
        """Remember the labels, all at once."""
        labels: dict[int, float] = {}
        for item in () if self._is_frozen else evidence:
            if isinstance(item, JudgedCaption) and item.judgement.status is Status.OK:
                labels[item.caption.id] = item.judgement.probability
        self._probabilities.update(labels)

    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """[N] f32: R of each caption; NaN without a label or a threshold, 0 for the empty caption."""
        return self._reward.rewards(captions, self._given(captions))

    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64: log-odds minus those of the threshold."""
        return log_odds(self._given(captions)) - log_odds(self._reward.threshold)

    def _given(self, captions: Sequence[Caption]) -> np.ndarray:
        p = self._probabilities.of(ids_of(captions))
        return p + self._smoothing * (self._reward.threshold - p) if self._smoothing else p

    def retain(self, ids: Set[int]) -> None:
        """Forget every other caption's label; a frozen model keeps all, because it would not get them again."""
        if not self._is_frozen:
            self._probabilities.retain(ids)

    def state_dict(self) -> dict[str, Any]:
        """All labels, and the threshold, so that a resumed run can score them before the service answers."""
        return {
            "threshold": self._reward.threshold,
            "ids": self._probabilities.ids.copy(),
            "probabilities": self._probabilities.values.copy(),
            "is_frozen": self._is_frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; a configured threshold overrides the saved one."""
        self.calibrate(state["threshold"])
        self._probabilities.replace(state["ids"], state["probabilities"])
        self._is_frozen = state["is_frozen"]


class ProbabilityReward:
    """R = 1[p > threshold] (`binary`), max(0, p - threshold) / (1 - threshold) (`soft`) or p (`probability`)."""

    def __init__(self, config: RewardModelConfig) -> None:
        """Raises ValueError for a threshold that is not a probability and for an unknown output."""
        if config.threshold != -1 and not 0 <= config.threshold < 1:
            raise ValueError(
                f"reward_model.threshold is a probability in [0, 1), got {config.threshold}; -1 is the rubric's"
            )
        if config.output not in OUTPUTS:
            raise ValueError(f"reward_model.output is one of {', '.join(OUTPUTS)}, got {config.output!r}")
        self._output, self._is_configured = config.output, config.threshold != -1
        self.threshold = config.threshold if self._is_configured else np.nan
        """NaN until `calibrate`, unless it is configured."""

    def calibrate(self, threshold: float) -> None:
        """Set the threshold, unless it is configured."""
        if not self._is_configured:
            self.threshold = threshold

    def rewards(self, captions: Sequence[Caption], probabilities: np.ndarray) -> np.ndarray:
        """[N] f32 from `probabilities` [N] f64."""
        above = probabilities - self.threshold
        if self._output == "binary":
            rewards = (above > 0).astype(np.float64)
        elif self._output == "soft":
            rewards = np.maximum(0.0, above) / (1.0 - self.threshold)
        else:
            rewards = probabilities
        return without_empty(captions, np.where(np.isnan(above), np.nan, rewards))
