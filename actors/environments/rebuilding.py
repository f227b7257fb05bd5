"""What vectors share that number their episodes and rebuild environments that fail.

Invariant: every failure is counted, and the first since the last report keeps its traceback.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from actors.environments.errors import EnvironmentFailure, environment_failure, fail, traceback_of
from actors.environments.vector import SeedStream, VectorStep
from configs.schema import EnvConfig

START_ATTEMPTS = 3
"""Attempts to start an episode in one environment before the vector fails."""


class RebuildingVector:
    """Numbers the episodes of B environments, and counts the failures of those that are rebuilt."""

    def __init__(self, spec: EnvSpec, config: EnvConfig, num_envs: int, seeds: SeedStream) -> None:
        self.num_envs, self._seeds, self._gymnasium_spec, self._config = num_envs, seeds, spec, config
        self._episodes, self._steps = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
        self._num_failures, self._first_failure = 0, ""
        self._notices: list[str] = []
        self._states: list[bytes] = []  # of each environment; empty without a describer
        self._features = np.zeros((num_envs, 0), np.float32)  # of each environment's current state; F is 0 without any

    @property
    def states(self) -> list[bytes] | None:
        """See `VectorEnvironment`."""
        return self._states or None

    @property
    def features(self) -> np.ndarray | None:
        """See `VectorEnvironment`."""
        return self._features if self._features.size else None

    @property
    def missions(self) -> list[bytes] | None:
        """See `VectorEnvironment`."""
        return None

    @property
    def running_episodes(self) -> np.ndarray:
        """See `VectorEnvironment`."""
        return self._episodes - 1

    def take_errors(self) -> tuple[int, str]:
        """See `VectorEnvironment`."""
        taken = self._num_failures, self._first_failure
        self._num_failures, self._first_failure = 0, ""
        return taken

    def take_notices(self) -> tuple[str, ...]:
        """See `VectorEnvironment`."""
        taken, self._notices = tuple(self._notices), []
        return taken

    def _quiet_step(self, obs: dict[str, np.ndarray]) -> VectorStep:
        """A step without rewards, ends, captions, states and features, to be filled in."""
        rewards, terminated, truncated = (np.zeros(self.num_envs, dtype) for dtype in (np.float32, bool, bool))
        captions = [b""] * self.num_envs
        return VectorStep(
            obs=obs,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            captions=captions,
            states=[b""] * self.num_envs if self._states else None,
            features=np.full_like(self._features, np.nan) if self._features.size else None,
        )

    def _naming_seed(self, purpose: str = "episode") -> int:
        """Of the episode whose first state names the features: the same in all workers of a run, and played by none."""
        return replace(self._seeds, stream="features", worker_index=0, first_env=0).seed(0, 0, purpose)

    def _failure(self, what: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"environment {self._gymnasium_spec.id!r} {what}")

    def _note(self, error: BaseException, where: str, index: int | None = None) -> None:
        """Count a failure of environment `index` (None: of all of them) in `where` (reset, step)."""
        failure = environment_failure(self._gymnasium_spec.id, error, where)
        if not self._first_failure:
            which = "" if index is None else f"environment {self._seeds.first_env + index} of this worker:\n"
            self._first_failure = f"{which}{traceback_of(failure)}{failure}"
        self._num_failures += 1

    def _attempt(self, start: Callable[[], Any], rebuild: Callable[[], None], index: int | None = None) -> Any:
        """The result of `start`, in up to START_ATTEMPTS attempts, between which `rebuild` is called."""
        for _ in range(START_ATTEMPTS - 1):
            try:
                return start()
            except BaseException as error:
                self._note(error, "reset", index)
                rebuild()
        try:
            return start()
        except BaseException as error:
            fail(self._gymnasium_spec.id, error, "reset")
