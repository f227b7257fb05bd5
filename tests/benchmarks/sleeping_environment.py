"""An environment that takes time and no processor: `tests.benchmarks.sleeping_environment:Sleeping-v0`.

Invariant: a step takes at least `step_s` of wall clock, whatever else the machine does, so that many workers can be
shown on few cores.
"""

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

EPISODE_STEPS = 500
NUM_TEXTS = 64


class Sleeping(gymnasium.Env):
    """Sleeps through each step; `info["text"]` says one of 64 things, and every episode has 500 steps."""

    def __init__(self, step_s: float = 0.002) -> None:
        self.step_s = step_s
        self.observation_space = spaces.Box(-1.0, 1.0, (8,), np.float32)
        self.action_space = spaces.Discrete(4)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode, without sleep."""
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {"text": "You lie down."}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step later."""
        time.sleep(self.step_s)
        self._steps += 1
        return (
            self._observe(),
            float(action == 1),
            self._steps == EPISODE_STEPS,
            False,
            {"text": f"You dream of {self._steps % NUM_TEXTS}."},
        )

    def _observe(self) -> np.ndarray:
        return np.full(8, self._steps / EPISODE_STEPS, np.float32)


gymnasium.register("Sleeping-v0", entry_point=f"{__name__}:Sleeping")
