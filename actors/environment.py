"""The vector environment that a worker steps, and the factory that builds one from a configuration.

Invariant: environments reset within the same step (SAME_STEP), and what an episode's last step showed (observation,
caption) is kept apart from the first observation of the next.
"""

import difflib
import importlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from actors.seeding import SeedStream
from configs.schema import EnvConfig, PolicyConfig

START_ATTEMPTS = 3
"""Episodes that an environment may fail to start in a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Shape and dtype of one observation entry, without the environment axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    num_values: int = 0
    """For categorical integers: values lie in [0, num_values); 0 means a numeric array."""
    is_text: bool = False
    """Whether it is the bytes of a text, padded with zeros (one axis of u8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalReward:
    """What an environment pays for its goal, and what an episode can lose to its time penalty."""

    reward: float
    """Paid once, at the goal."""
    max_penalty: float
    """The penalties of an episode of `step_limit` steps each of which costs most; at most 0."""
    step_limit: int
    """Steps after which an episode is truncated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """What a network must know of an environment, and what is known of its reward."""

    observations: dict[str, ArraySpec]
    """Entries that the network reads."""
    num_actions: int
    """Size of the discrete action set."""
    goal_reward: GoalReward | None = None
    """None where the environment has no goal that is paid once, or how it pays is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeEnd:
    """The end of one environment's episode, before its reset."""

    index: int
    """Which environment."""
    final_obs: dict[str, np.ndarray]
    """The episode's own last observation, name -> [...]."""
    reset_caption: bytes
    """Raw caption of the new episode's first observation: counted, not rewarded."""
    info: dict[str, float]
    """End-of-episode figures for the logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentLoss:
    """One environment that raised in a step: it has been rebuilt, and its next episode has begun."""

    index: int
    """Which environment."""
    reset_caption: bytes
    """As in `EpisodeEnd`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorStep:
    """One step of B environments (environment -> worker)."""

    obs: dict[str, np.ndarray]
    """name -> [B, ...], after the reset where an episode ended: the arrays that `step` was given, or new ones."""
    rewards: np.ndarray
    """[B] f32."""
    terminated: np.ndarray
    """[B] bool."""
    truncated: np.ndarray
    """[B] bool."""
    captions: list[bytes]
    """Raw captions of what this step led to (before normalisation; UTF-8)."""
    ends: list[EpisodeEnd] = field(default_factory=list)
    """One per environment whose episode ended in this step."""
    losses: list[EnvironmentLoss] = field(default_factory=list)
    """One per environment that raised in this step: its reward is 0, its caption empty, its episode `truncated` without an end."""


class EnvironmentErrors:
    """Exceptions of environments, counted until they are taken."""

    def __init__(self) -> None:
        self._count, self._first = 0, ""

    def note(self) -> None:
        """Count the exception that is being handled."""
        self._first = self._first or traceback.format_exc()
        self._count += 1

    def take(self) -> tuple[int, str]:
        """How many since the last call, and the first one's traceback."""
        taken = self._count, self._first
        self._count, self._first = 0, ""
        return taken


class VectorEnvironment(Protocol):
    """B environments stepped together by one worker."""

    spec: EnvironmentSpec
    num_envs: int

    @property
    def running_episodes(self) -> np.ndarray:
        """[B] i64: the number of the episode that each environment plays. With its index it names the game: every start takes the next
        number, also one that fails; -1 before the first."""
        ...

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Start an episode everywhere: observations name -> [B, ...] and the raw captions of what they show."""
        ...

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None = None) -> VectorStep:
        """Take one action in each environment; `actions` is [B] i64. Observations are written into `out` where it is given
        (name -> [B, ...], C-contiguous, unchanged by the caller until the next step has returned)."""
        ...

    def take_errors(self) -> tuple[int, str]:
        """How many exceptions environments raised since the last call, and the first one's traceback. An environment that raises is
        rebuilt; `reset` and `step` raise only where it raises again and again as it starts."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Nested dict of arrays and JSON values. `exact` says whether it continues bit for bit (the environments can save
        themselves) or holds only how many episodes each environment has started, so that none is played twice."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """Continue from `state_dict`: the current observations, name -> [B, ...], where it was exact; otherwise None, and
        the caller resets: `reset` then starts the episodes after the saved ones."""
        ...

    def close(self) -> None:
        """Release engines, processes and temporary files."""
        ...


def make_environment(
    config: EnvConfig,
    *,
    num_envs: int,
    run_seed: int,
    worker_index: int,
    stream: str = "train",
    policy: PolicyConfig | None = None,
) -> VectorEnvironment:
    """`num_envs` environments as `config` describes them, seeded by (run_seed, stream, worker_index, environment, episode).

    `policy` (None: the defaults) says what is to be observed: NetHack's window, and the previous action and reward. Raises
    ValueError, in one line, for an id that does not exist, options the environment does not take, a captioner that does not
    fit, and spaces that no network here reads.
    """
    policy = policy or PolicyConfig()
    env = _make(config, policy, num_envs, SeedStream(run_seed=run_seed, stream=stream, worker_index=worker_index))
    if not (policy.previous_action or policy.previous_reward):
        return env
    from actors.previous_step import PreviousStepEnvironment

    try:
        return PreviousStepEnvironment(env, policy)
    except BaseException:
        env.close()
        raise


def _make(config: EnvConfig, policy: PolicyConfig, num_envs: int, seeds: SeedStream) -> VectorEnvironment:
    spec = find_environment(config.id)
    if _is_nethack(spec):
        from actors.hero_view import view_for
        from actors.nethack import NetHackEnvironment

        view = view_for(policy.network, policy.crop_size)
        return NetHackEnvironment(spec, config, num_envs=num_envs, seeds=seeds, view=view, inventory=policy.network == "nethack_full")
    from actors.gymnasium_environment import GymnasiumEnvironment

    return GymnasiumEnvironment(spec, config, num_envs=num_envs, seeds=seeds)


def find_environment(env_id: str) -> EnvSpec:
    """The registered specification of `env_id`; builds nothing. Raises ValueError saying what was given and what to do."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"environment id {env_id!r} names the module {module!r}, which cannot be imported ({error}); "
                "install it, or put it on the Python path"
            ) from None
    game = name.lower().rpartition("/")[2]
    if game.startswith(("nethack", "minihack")):
        _import_nethack(env_id, "minihack" if game.startswith("minihack") else "nle")
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error:
        matches = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(matches)}?" if matches else "give a registered id, or module:Id to import its module first"
        raise ValueError(f"unknown environment id {env_id!r}; {hint}") from None


def _import_nethack(env_id: str, package: str) -> None:
    """Register NLE's or MiniHack's environments; ValueError with the command that installs what is missing."""
    try:
        from actors.nethack import register_environments

        register_environments(package)
    except ImportError as error:
        raise ValueError(
            f"environment {env_id!r} needs the package {package}, which cannot be imported ({error}); "
            f"install it with: pip install 'delphi-rl[{package}]'"
        ) from None


def load_creator(spec: EnvSpec) -> Callable[..., Any]:
    """The class or function that makes the environment, without gymnasium's wrappers; ValueError where it cannot be loaded."""
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except (ImportError, AttributeError) as error:
        raise ValueError(f"environment {spec.id!r} cannot be loaded ({error}); install the package it belongs to") from None
    if creator is None:
        raise ValueError(f"environment {spec.id!r} has only a vectorised entry point; choose one that makes single environments")
    return creator


def _is_nethack(spec: EnvSpec) -> bool:
    """Whether the environment's class descends from NLE's, whatever package registered it."""
    creator = load_creator(spec)
    return isinstance(creator, type) and any(base.__module__.partition(".")[0] == "nle" for base in creator.__mro__)
