"""Environments with the oddities that people's own have, registered on import: `tests.odd_environments:Odd-v0`, and
MiniHack levels.

Invariant: what is odd is given as an option; without any, an episode of `Odd` has 5 steps and nothing to complain of.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from actors.environments.factory import make_environment
from actors.environments.vector import VectorEnvironment
from configs.schema import EnvConfig

DESCRIPTION = (
    "MAZE: \"mylevel\", ' '\nFLAGS:premapped\nGEOMETRY:center,center\nMAP\n......\nENDMAP\nBRANCH:(0,0,0,0),(5,0,5,0)\n"
)
"""Of a MiniHack level."""
PLAIN = spaces.Box(-1, 1, (4,), np.float32)


ODD = "tests.odd_environments:"
SINGLE = "environment 'Odd-v0'"
"""How messages name an `Odd`."""


def make_odd(env_id: str = "Odd-v0", num_envs: int = 2, **settings: Any) -> VectorEnvironment:
    """A vector of one of these environments; `settings` are its options, `captioner` and `limit` the run's."""
    config = EnvConfig(
        id=ODD + env_id,
        captioner=settings.pop("captioner", "info:event"),
        max_episode_steps=settings.pop("limit", 0),
        options=settings,
    )
    return make_environment(config, num_envs=num_envs, run_seed=1, worker_index=0)


class Odd(gymnasium.Env):
    """`obs`, `reward`, `reset` and `step` are functions of the number of the step, and may give or raise anything."""

    action_space = spaces.Discrete(3)
    made = 0

    def __init__(
        self,
        space: spaces.Space = PLAIN,
        obs: Callable[[int], Any] = lambda t: np.zeros(4, np.float32),
        reward: Callable[[int], Any] = lambda t: 1.0,
        info: Callable[[int], Any] = lambda t: {"event": f"step {t}"},
        reset: Callable[[int], Any] | None = None,
        step: Callable[[int], Any] | None = None,
        making: Callable[[int], Any] | None = None,
    ) -> None:
        self.observation_space = space
        self._obs, self._reward, self._info, self._reset, self._step = obs, reward, info, reset, step
        self._t = 0
        Odd.made += 1
        if making is not None:
            making(Odd.made)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Step 0."""
        super().reset(seed=seed)
        self._t = 0
        return (self._obs(0), self._info(0)) if self._reset is None else self._reset(0)

    def step(self, action: int) -> Any:
        """One step more."""
        self._t += 1
        if self._step is not None:
            return self._step(self._t)
        return self._obs(self._t), self._reward(self._t), self._t == 5, False, self._info(self._t)


class SeedlessReset(Odd):
    """As environments were before 0.26."""

    def reset(self) -> Any:  # type: ignore[override]
        """Without a seed."""
        return super().reset()


def limited(**kwargs: Any) -> gymnasium.Env:
    """A function that keeps a limit of its own."""
    return gymnasium.wrappers.TimeLimit(Odd(**kwargs), 3)


class FourSteps(gymnasium.Wrapper):
    """One step is four of the environment's."""

    def step(self, action: Any) -> Any:
        """The last observation, and the sum of the rewards."""
        total = 0.0
        for _ in range(4):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


class Deadline(gymnasium.wrappers.TimeLimit):
    """A limit that costs something."""

    def step(self, action: Any) -> Any:
        """Minus 100 at the limit."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, float(reward) - 100 * truncated, terminated, truncated, info


class Spaces(Odd):
    """Declares what it is given as its spaces; what is None, not at all."""

    def __init__(self, observed: Any = None, actions: Any = None) -> None:
        super().__init__()
        self._observed, self._actions = observed, actions

    def __getattribute__(self, name: str) -> Any:
        held = super().__getattribute__("__dict__")
        given = {"observation_space": held.get("_observed"), "action_space": held.get("_actions")}
        if name in given and given[name] is None:
            raise AttributeError(f"no {name} yet")
        return given.get(name) or super().__getattribute__(name)


def raising(error: BaseException) -> Callable[[Any], Any]:
    """A function that raises."""

    def act(t: Any) -> Any:
        raise error

    return act


def level(**kwargs: Any) -> Any:
    """A MiniHack level with a limit of its own, made by a function that takes only what it knows."""
    from minihack import MiniHackNavigation

    return MiniHackNavigation(des_file=DESCRIPTION, max_episode_steps=30, **kwargs)


def bare_level() -> Any:
    """The same without any argument."""
    return level()


class TenTimes(gymnasium.RewardWrapper):
    """Changes rewards."""

    def reward(self, reward: Any) -> float:
        """Ten times."""
        return 10 * float(reward)


class TwoActions(gymnasium.ActionWrapper):
    """Changes what actions there are."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.action_space = spaces.Discrete(2)

    def action(self, action: int) -> int:
        """East and west."""
        return (1, 3)[action]


def wrapped_level(**kwargs: Any) -> gymnasium.Env:
    """Wrappers between."""
    return TwoActions(gymnasium.wrappers.TimeLimit(TenTimes(level(**kwargs)), 12))


def limited_level(**kwargs: Any) -> gymnasium.Env:
    """Only wrappers that change nothing."""
    return gymnasium.wrappers.TimeLimit(gymnasium.wrappers.OrderEnforcing(level(**kwargs)), 12)


def observed_level(**kwargs: Any) -> gymnasium.Env:
    """A wrapper with observations of its own."""
    return gymnasium.wrappers.FilterObservation(level(**kwargs), ["message", "blstats"])


def unpayable_level(**kwargs: Any) -> Any:
    """Pays nothing that is a number."""
    env = level(**kwargs)
    env._reward_fn = lambda *arguments: float("nan")
    return env


class Returning(gymnasium.Wrapper):
    """Returns from step what `change` makes of it."""

    def __init__(self, env: gymnasium.Env, change: Callable[[Any], Any]) -> None:
        super().__init__(env)
        self._change = change

    def step(self, action: Any) -> Any:
        """See the class."""
        return self._change(self.env.step(action))


def returning_level(change: Callable[[Any], Any]) -> gymnasium.Env:
    """A level of which step returns something else."""
    return Returning(level(), change)


def skipping_level(**kwargs: Any) -> gymnasium.Env:
    """Four steps of the game are one."""
    return FourSteps(level(**kwargs))


def deadline_level(**kwargs: Any) -> gymnasium.Env:
    """A limit that costs something."""
    return Deadline(level(**kwargs), 5)


class Holding(gymnasium.Env):
    """No wrapper, but an environment that holds a game under a name of its own, made anew in every `renewed`-th reset
    (0: never; -1: only there)."""

    def __init__(self, held_as: str = "simulator", renewed: int = 0) -> None:
        game = level()
        self.observation_space, self.action_space = game.observation_space, game.action_space
        self._name, self._renewed, self._num_resets = held_as, renewed, 0
        setattr(self, held_as, None if renewed == -1 else game)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """See the class."""
        self._num_resets += 1
        if self._renewed and self._num_resets % self._renewed == 0:
            setattr(self, self._name, level())
        return getattr(self, self._name).reset(seed=seed)

    def step(self, action: int) -> Any:
        """The game's."""
        return getattr(self, self._name).step(action)


def class_of_its_own(**given: Any) -> type:
    """A class of levels whose constructor takes no arguments, and gives NLE's itself."""
    from minihack import MiniHackNavigation

    def make(self: Any) -> None:
        arguments = {"des_file": DESCRIPTION, "max_episode_steps": 30, **given}
        MiniHackNavigation.__init__(self, **arguments)

    return type("Level", (MiniHackNavigation,), {"__init__": make})


gymnasium.register("Odd-v0", entry_point=Odd)
gymnasium.register("Spaces-v0", entry_point=Spaces)
gymnasium.register("SeedlessReset-v0", entry_point=SeedlessReset)
gymnasium.register("OwnLimit-v0", entry_point=limited)
gymnasium.register("RegisteredLimit-v0", entry_point=Odd, max_episode_steps=2)
gymnasium.register(
    "Unreachable-v0", entry_point=Odd, kwargs={"reset": raising(RuntimeError("no simulator at port 2000"))}
)
gymnasium.register("Unprintable-v0", entry_point=Odd, kwargs={"reset": raising(RuntimeError("no map caf\udce9 → ☃"))})
gymnasium.register(
    "Unbounded-v0", entry_point=Odd, max_episode_steps=2, kwargs={"obs": lambda t: np.full(4, t, np.float32)}
)
gymnasium.register(
    "NotANumber-v0", entry_point=Odd, kwargs={"obs": lambda t: np.full(4, np.nan if t == 3 else 0, np.float32)}
)
_LEVELS: tuple[Callable[..., Any], ...] = (
    *(level, bare_level, wrapped_level, limited_level, observed_level, unpayable_level, returning_level),
    *(skipping_level, deadline_level, Holding),
)
for _function in _LEVELS:
    gymnasium.register(f"MiniHack-Odd-{_function.__name__}-v0", entry_point=_function)
gymnasium.register(
    "MiniHack-Odd-registered-v0",
    entry_point=level,
    max_episode_steps=9,
    additional_wrappers=(gymnasium.envs.registration.WrapperSpec("TenTimes", f"{__name__}:TenTimes", {}),),
)
