"""The vector environment that a worker steps: its interface, the values that it exchanges, and its seeds.

Invariant: environments reset within the same step (SAME_STEP), and the observation and caption of an episode's last
step are kept apart from the first observation of the next. A seed depends only on the episode's place.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

MISSION = "mission"
"""The observation entry with an episode's instruction in words, as MiniGrid and BabyAI give it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedStream:
    """The seeds of one worker's episodes."""

    run_seed: int
    stream: str  # purpose of the episodes (`train`, `eval`): different streams share no episode
    worker_index: int
    first_env: int = 0  # number of the vector's first environment: any one can be played without those before it

    def seed(self, env_index: int, episode: int, purpose: str = "episode") -> int:
        """A seed in [0, 2^63) for one episode of one environment; `purpose` separates several generators within it."""
        place = f"{self.run_seed}/{self.stream}/{self.worker_index}/{self.first_env + env_index}/{episode}/{purpose}"
        return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Shape and dtype of one observation entry, without the environment axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    num_values: int = 0  # for categorical integers: values lie in [0, num_values); 0 means a numeric array
    is_text: bool = False
    """Whether it is a text: its bytes, padded with zeros (one axis of u8), or, with `num_values`, the numbers of its
    words (`actors.environments.word_numbers`)."""


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
    has_small_bounds: bool = False
    """Whether `env.stretch_bounds` makes a difference."""
    action_names: tuple[str, ...] = ()
    """`env.action_names`, or what the environment calls its actions; empty where nobody says."""
    features: tuple[str, ...] = ()
    """The names of the features of its states (`env.features`), in the order of their columns."""


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
    states: list[bytes] | None = None
    """What the describer says of the states that this step led to, an episode's own last one included (raw, UTF-8);
    None without a describer. Those after the resets are the environments' `states`."""
    features: np.ndarray | None = None
    """[B, F] f32: the features of the states that this step led to, an episode's own last one included; NaN where one
    is missing, and where an environment failed. None without features. Those after the resets are the environments'
    `features`."""
    ends: list[EpisodeEnd] = field(default_factory=list)  # one per environment whose episode ended in this step
    losses: dict[int, bytes] = field(default_factory=dict)
    """Environments that failed in this step -> `reset_caption`: they have been rebuilt, and the next episode has begun.
    The step has reward 0, an empty caption and state, no features, and is `truncated` without an end."""


class VectorEnvironment(Protocol):
    """B environments stepped together by one worker."""

    spec: EnvironmentSpec
    num_envs: int

    @property
    def running_episodes(self) -> np.ndarray:
        """[B] i64: the number of each environment's current episode. Together with its index it identifies the game:
        every start uses the next number, also a failed one; -1 before the first."""

    @property
    def states(self) -> list[bytes] | None:
        """What the describer says of the environments' current states, which the next actions are taken in (raw,
        UTF-8); None without a describer."""

    @property
    def features(self) -> np.ndarray | None:
        """[B, F] f32: the features of the environments' current states, which the next actions are taken in (unchanged
        until the next step); None without features. Their names are in `spec`."""

    @property
    def missions(self) -> list[bytes] | None:
        """The instructions of the environments' running episodes (raw, UTF-8), as the observation MISSION had them at
        their starts; None for environments that give none."""

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Start an episode everywhere: observations name -> [B, ...] and the raw captions of what they show."""

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None = None) -> VectorStep:
        """Take one action in each environment; `actions` is [B] i64. Observations are written into `out` if given (name
        -> [B, ...], C-contiguous, unchanged by the caller until the next step has returned)."""

    def interface(self) -> dict[str, Any]:
        """JSON values from which `actors.environments.single.make_reader` reads an observation without this
        environment, with `first_action`."""

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


class ExtendedEnvironment:
    """A vector environment whose observations have further entries: what all classes that add some have in common. They
    implement `reset`, `step`, `state_dict` and `load_state_dict`."""

    def __init__(self, env: VectorEnvironment, entries: Mapping[str, ArraySpec], settings: Sequence[str]) -> None:
        """`settings` add the `entries`. Raises ValueError if the environment already has entries of these names."""
        self._env, self.num_envs = env, env.num_envs
        self.take_errors, self.take_notices, self.close = env.take_errors, env.take_notices, env.close
        self.interface = env.interface
        if taken := sorted(entries.keys() & env.spec.observations.keys()):
            wanted = f"leave {' and '.join(settings)} false"
            raise ValueError(f"the environment observes {', '.join(map(repr, taken))} itself; {wanted}")
        self.spec = replace(env.spec, observations=env.spec.observations | dict(entries))

    def _step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None) -> VectorStep:
        """Take one action in each environment, without the further entries."""
        theirs = None if out is None else {name: out[name] for name in self._env.spec.observations}
        return self._env.step(actions, theirs)

    @property
    def states(self) -> list[bytes] | None:
        """See `VectorEnvironment`."""
        return self._env.states

    @property
    def features(self) -> np.ndarray | None:
        """See `VectorEnvironment`."""
        return self._env.features

    @property
    def missions(self) -> list[bytes] | None:
        """See `VectorEnvironment`."""
        return self._env.missions

    @property
    def running_episodes(self) -> np.ndarray:
        """See `VectorEnvironment`."""
        return self._env.running_episodes
