"""An environment of which random play shows nothing to say, registered on import."""

from typing import Any

import gymnasium
import numpy as np


class Code(gymnasium.Env):
    """A grid of codes that never changes."""

    observation_space = gymnasium.spaces.Box(0, 5, (6, 6, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Ones."""
        super().reset(seed=seed)
        return np.ones((6, 6, 3), np.uint8), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The same ones."""
        return np.ones((6, 6, 3), np.uint8), 0.0, False, False, {}


gymnasium.register("Code-v0", entry_point=Code, max_episode_steps=20)


class Broken(Code):
    """Every step raises."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See the class."""
        raise KeyError("pieces")


gymnasium.register("Broken-v0", entry_point=Broken)
