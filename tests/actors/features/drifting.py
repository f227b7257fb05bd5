"""A small environment with features, registered on import: `tests.actors.features.drifting:Drift-v0`, with the sources
that its tests read.

Invariant: seeded, it is deterministic, failures included; `SavingDrift-v0` continues bit for bit from its state.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 9
HERE = "tests.actors.features.drifting"
FEATURES = ["obs", "info:energy", f"{HERE}:twice"]
NAMES = ("place", "clock", "energy", "twice")


class Drift(gymnasium.Env):
    """Begins anywhere between two borders, at which episodes end; fails at a step with probability `fails`. In every
    third step its info says nothing of the energy."""

    def __init__(self, fails: float = 0.0) -> None:
        self.observation_space = spaces.Box(-1.0, 100.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._fails, self._place, self._clock = fails, 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Somewhere between the borders."""
        super().reset(seed=seed)
        self._place, self._clock = int(self.np_random.integers(2, LENGTH - 2)), 0
        return self._observe()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step to the left or right, or none."""
        if self.np_random.random() < self._fails:
            raise OSError("washed away")
        self._place += int(self.np_random.integers(-1, 2)) + 2 * action - 1
        self._clock += 1
        obs, info = self._observe()
        return obs, 0.0, not 0 < self._place < LENGTH, False, info

    def _observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        info: dict[str, Any] = {} if self._clock % 3 == 0 else {"energy": 10.0 - self._clock}
        return np.array([self._place, self._clock], np.float32), info


class SavingDrift(Drift):
    """It can save itself."""

    def state_dict(self) -> dict[str, Any]:
        """Where it is, and its generator."""
        return {"place": self._place, "clock": self._clock, "rng": self.np_random.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._place, self._clock = int(state["place"]), int(state["clock"])
        self.np_random.bit_generator.state = state["rng"]


def twice(obs: np.ndarray, info: Mapping[str, Any]) -> dict[str, float]:
    """A source of one's own."""
    return {"twice": 2.0 * float(obs[0])}


def nothing(obs: Any, info: Mapping[str, Any]) -> str:
    """A captioner."""
    return ""


def expected(obs: np.ndarray, info: Mapping[str, Any]) -> list[float]:
    """What FEATURES give, written out."""
    return [float(obs[0]), float(obs[1]), info.get("energy", float("nan")), 2.0 * float(obs[0])]


for _kind in (Drift, SavingDrift):
    gymnasium.register(f"{_kind.__name__}-v0", entry_point=f"{HERE}:{_kind.__name__}")
