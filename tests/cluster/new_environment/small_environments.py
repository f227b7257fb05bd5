"""Environments for tests of `delphi new-environment`, registered on import.

Invariant: all of them are deterministic.
"""

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


class Letters(gymnasium.Env):
    """Two texts of bytes that change: letters of an inventory, and messages."""

    observation_space = gymnasium.spaces.Dict(
        {name: gymnasium.spaces.Box(0, 255, (12,), np.uint8) for name in ("letters", "said")}
    )
    action_space = gymnasium.spaces.Discrete(2)
    max_steps = 30

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """An empty pack."""
        super().reset(seed=seed)
        return self._observe(""), {}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Something is taken, or not."""
        return self._observe("abcd"[: 2 + action]), 0.0, False, False, {}

    def _observe(self, letters: str) -> dict[str, np.ndarray]:
        texts = {"letters": letters, "said": f"You have {len(letters)}."}
        return {name: np.frombuffer(text.encode().ljust(12, b"\0"), np.uint8) for name, text in texts.items()}


gymnasium.register("Letters-v0", entry_point=Letters)
