"""The baselines that never ask the LLM: `counts` rewards every caption alike, `none` rewards nothing.

Invariant: they hold no state, so every caption is scored the moment it is known.
"""

from collections.abc import Sequence

import numpy as np

from llm_server.annotation import Caption
from reward_models.interface import Asks, RewardModel


class CountsModel(RewardModel):
    """R = 1 for every non-empty caption, so that of the intrinsic reward only 1 / N^beta is left: episodic novelty of captions."""

    name = "counts"
    asks = Asks.NOTHING
    reward = 1.0

    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """[N] f32: the constant, 0 for the empty caption."""
        return np.array([self.reward if caption.id else 0.0 for caption in captions], np.float32)

    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64: the constant, which tells no caption from another."""
        return np.full(len(captions), self.reward)


class NoneModel(CountsModel):
    """R = 0: extrinsic reward only."""

    name = "none"
    reward = 0.0
