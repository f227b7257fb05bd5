"""The reward of a caption from the probability that it is progress, for retrieval and classification.

Invariant: NaN (unknown, or no threshold yet) stays NaN; the empty caption is always 0.
"""

from collections.abc import Sequence

import numpy as np

from configs.annotation_schema import RewardModelConfig
from llm_server.annotation import Caption

OUTPUTS = ("binary", "soft", "probability")


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
        """See `RewardModel`."""
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


def without_empty(captions: Sequence[Caption], rewards: np.ndarray) -> np.ndarray:
    """`rewards` as f32, 0 for the empty caption."""
    rewards = rewards.astype(np.float32)
    rewards[[caption.id == 0 for caption in captions]] = 0.0
    return rewards
