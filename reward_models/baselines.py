"""The baselines that never ask the LLM: `counts` rewards every caption alike, `none` rewards nothing.

Invariant: they hold no state, so every caption is scored the moment it is known.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from llm_server.annotation import Caption
from reward_models.interface import Asks, Evidence


class ConstantModel:
    """R is one constant for every non-empty caption."""

    asks = Asks.NOTHING
    depends_on_counts = False
    is_settled = True

    def __init__(self, name: str, reward: float) -> None:
        self.name, self._reward = name, reward

    @staticmethod
    def counts() -> "ConstantModel":
        """R = 1, so that of the intrinsic reward only 1 / N^beta is left: episodic novelty of captions."""
        return ConstantModel("counts", 1.0)

    @staticmethod
    def none() -> "ConstantModel":
        """R = 0: extrinsic reward only."""
        return ConstantModel("none", 0.0)

    def calibrate(self, threshold: float) -> None:
        """No judge, no threshold."""

    def learn(self, evidence: Sequence[Evidence]) -> None:
        """Nothing to learn."""

    def train(self) -> Mapping[str, float]:
        """No gradients."""
        return {}

    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """[N] f32: the constant, 0 for the empty caption."""
        return np.array([self._reward if caption.id else 0.0 for caption in captions], np.float32)

    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64: the constant, which tells no caption from another."""
        return np.full(len(captions), self._reward)

    def goals(self, captions: Sequence[Caption]) -> None:
        """None."""

    def retain(self, ids: Set[int]) -> None:
        """Nothing to forget."""

    def freeze(self, captions: Sequence[Caption], counts: np.ndarray) -> None:
        """It always is."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""
