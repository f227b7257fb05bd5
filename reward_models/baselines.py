"""The baselines that never ask the LLM: `counts` gives every caption the same reward, `none` gives no reward.

Invariant: they have no state, so every caption has a score as soon as it is known.
"""

from collections.abc import Sequence

import numpy as np

from llm_server.annotation import Caption
from reward_models.interface import Asks, RewardModel


class CountsModel(RewardModel):
    """R = 1 for every non-empty caption, so that intrinsic reward is 1 / N^beta: the episodic novelty of captions."""

    name = "counts"
    asks = Asks.NOTHING
    reward = 1.0

    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """[N] f32: the constant, 0 for the empty caption."""
        return np.array([self.reward if caption.id else 0.0 for caption in captions], np.float32)

    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64: the constant."""
        return np.full(len(captions), self.reward)


class NoneModel(CountsModel):
    """R = 0: extrinsic reward only."""

    name = "none"
    reward = 0.0
