"""The vector environment that a worker steps: its interface, the values that it exchanges, its seeds, and what vectors
share that number their episodes and rebuild environments that fail.

Invariant: environments reset within the same step (SAME_STEP), and the observation and caption of an episode's last
step are kept apart from the first observation of the next. A seed depends only on the episode's place.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from gymnasium.envs.registration import EnvSpec

from actors.environments.errors import EnvironmentFailure, environment_failure, fail, traceback_of
from configs.schema import EnvConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedStream:
    """The seeds of one worker's episodes."""

    run_seed: int
    stream: str  # purpose of the episodes (`train`, `eval`): different streams share no episode
    worker_index: int

    def seed(self, env_index: int, episode: int, purpose: str = "episode") -> int:
        """A seed in [0, 2^63) for one episode of one environment; `purpose` separates several generators within it."""
        place = f"{self.run_seed}/{self.stream}/{self.worker_index}/{env_index}/{episode}/{purpose}"
        return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Shape and dtype of one observation entry, without the environment axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    num_values: int = 0  # for categorical integers: values lie in [0, num_values); 0 means a numeric array
    is_text: bool = False  # whether it holds the bytes of a text, padded with zeros (one axis of u8)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalReward:
    """How an environment rewards its goal, and what an episode can lose to its time penalty."""

    reward: float  # paid once, at the goal
    max_penalty: float  # sum of the penalties of `step_limit` steps, each at its worst; at most 0
    step_limit: int  # steps after which an episode is truncated


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """What a network needs to know about an environment, and what is known about its reward."""

    observations: dict[str, ArraySpec]  # entries that the network reads
    num_actions: int  # size of the discrete action set
    goal_reward: GoalReward | None = None  # None: there is no goal that is rewarded once, or its reward is unknown
    notices: tuple[str, ...] = ()
    """Notices for the user, one line each: what the policy does not see, a step limit that is not its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeEnd:
    """The end of one environment's episode, before its reset."""

    index: int
    final_obs: dict[str, np.ndarray]  # the episode's own last observation, name -> [...]
    reset_caption: bytes  # raw caption of the new episode's first observation: counted, not rewarded
    info: dict[str, float]  # metrics for the logs


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorStep:
    """One step of B environments (environment -> worker)."""

    obs: dict[str, np.ndarray]
    """name -> [B, ...], after the reset if an episode ended: the arrays passed to `step`, or new ones."""
    rewards: np.ndarray  # [B] f32
    terminated: np.ndarray  # [B] bool
    truncated: np.ndarray  # [B] bool
    captions: list[bytes]  # raw captions of what this step led to (before normalisation; UTF-8)
    ends: list[EpisodeEnd] = field(default_factory=list)  # one per environment whose episode ended in this step
    losses: dict[int, bytes] = field(default_factory=dict)
    """Environments that failed in this step -> `reset_caption`: they have been rebuilt, and the next episode has begun.
    The step has reward 0, an empty caption, and is `truncated` without an end."""


class VectorEnvironment(Protocol):
    """B environments stepped together by one worker."""

    spec: EnvironmentSpec
    num_envs: int

    @property
    def running_episodes(self) -> np.ndarray:
        """[B] i64: the number of each environment's current episode. Together with its index it identifies the game:
        every start uses the next number, also a failed one; -1 before the first."""

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Start an episode everywhere: observations name -> [B, ...] and the raw captions of what they show."""

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None = None) -> VectorStep:
        """Take one action in each environment; `actions` is [B] i64. Observations are written into `out` if given (name
        -> [B, ...], C-contiguous, unchanged by the caller until the next step has returned)."""

    def take_errors(self) -> tuple[int, str]:
        """Number of failures since the last call, and the first one's traceback, whose last line names it. A failed
        environment is rebuilt; `reset` and `step` raise EnvironmentFailure only if it fails to start repeatedly."""

    def take_notices(self) -> tuple[str, ...]:
        """New notices for the user since the last call, one line each."""

    def state_dict(self) -> dict[str, Any]:
        """Nested dict of arrays and JSON values. `exact`: whether it continues bit for bit (the environments can save
        themselves) or holds only how many episodes each environment has started, so that none is played twice."""

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """Continue from `state_dict`: the current observations, name -> [B, ...], if it was exact; otherwise None, and
        the caller's `reset` starts the episodes after the saved ones."""

    def close(self) -> None:
        """Release engines, processes and temporary files."""


START_ATTEMPTS = 3
"""Attempts to start an episode in one environment before the vector fails."""


class RebuildingVector:
    """Numbers the episodes of B environments, and counts the failures of those that are rebuilt."""

    def __init__(self, spec: EnvSpec, config: EnvConfig, num_envs: int, seeds: SeedStream) -> None:
        self.num_envs, self._seeds, self._gymnasium_spec, self._config = num_envs, seeds, spec, config
        self._episodes, self._steps = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
        self._num_failures, self._first_failure = 0, ""
        self._notices: list[str] = []

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
        """A step without rewards, ends and captions, to be filled in."""
        rewards, terminated, truncated = (np.zeros(self.num_envs, dtype) for dtype in (np.float32, bool, bool))
        captions = [b""] * self.num_envs
        return VectorStep(obs=obs, rewards=rewards, terminated=terminated, truncated=truncated, captions=captions)

    def _failure(self, what: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"environment {self._gymnasium_spec.id!r} {what}")

    def _note(self, error: BaseException, where: str, index: int | None = None) -> None:
        """Count a failure of environment `index` (None: of all of them) in `where` (reset, step)."""
        failure = environment_failure(self._gymnasium_spec.id, error, where)
        if not self._first_failure:
            which = "" if index is None else f"environment {index} of this worker:\n"
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
