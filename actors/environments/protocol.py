"""What an environment declares, and what it returns from reset and step, checked against gymnasium's protocol.

Invariant: whatever does not follow the protocol is an `EnvironmentFailure` that says what was got and what was wanted;
what can mean only one thing (a list for a tuple, an array of one number) is taken as it is meant.
"""

from collections.abc import Mapping, Sequence
from enum import EnumMeta
from typing import Any

import numpy as np
from gymnasium import spaces

from actors.environments.errors import EnvironmentFailure, fail, shown

LARGEST_FLOAT = float(np.finfo(np.float32).max)
STEP_GIVES = "(observation, reward, terminated, truncated, info)"


def declared_space(env: Any, name: str, env_id: str) -> spaces.Space:
    """The `observation_space` or `action_space` of an environment."""
    try:
        space = getattr(env, name)
    except BaseException as error:
        fail(env_id, error, f"its {name}")
    if not isinstance(space, spaces.Space):
        got = f"{type(space).__module__}.{type(space).__qualname__} {shown(space)}"
        raise EnvironmentFailure(f"environment {env_id!r} has the {name} {got}, wanted a space of gymnasium.spaces")
    return space


def discrete_actions(env: Any, env_id: str) -> tuple[int, int]:
    """The first action and how many there are; ValueError for other action spaces."""
    actions = declared_space(env, "action_space", env_id)
    if not isinstance(actions, spaces.Discrete):
        what = f"environment {env_id!r} has the action space {shown(actions)}"
        raise ValueError(f"{what}; policies here need Discrete actions")
    return int(actions.start), int(actions.n)


def action_names(env: Any, first: int, num_actions: int) -> tuple[str, ...]:
    """The names of actions `first` to `first + num_actions - 1`: Atari's meanings, or the enumeration or list `actions`
    of MiniGrid and NetHack; empty for environments that name none, or others."""
    try:
        played = env.unwrapped
        if hasattr(played, "get_action_meanings"):
            names = list(played.get_action_meanings())
        elif isinstance(played.actions, EnumMeta):
            names = [played.actions(first + i).name for i in range(num_actions)]
        else:
            names = [action.name for action in played.actions]
        is_named = len(names) == num_actions and all(isinstance(name, str) for name in names)
    except Exception:  # of an attribute that somebody else wrote; names are only for people
        return ()
    return tuple(name.lower().replace("_", " ") for name in names) if is_named else ()


def given_action_names(names: Sequence[str], num_actions: int, env_id: str) -> tuple[str, ...]:
    """`env.action_names`; ValueError unless they are none, or one for each action, all different."""
    given = tuple(name.strip() for name in names)
    wanted = f"wanted {num_actions} different words, one for each action of {env_id!r} in their order"
    if given and len(given) != num_actions:
        raise ValueError(f"env.action_names: got {len(given)}, {wanted}")
    for name in given:
        if not name or given.count(name) > 1:
            raise ValueError(f"env.action_names: got {name!r}{' twice' if name else ''}, {wanted}")
    return given


def reset_result(given: Any, env_id: str) -> tuple[Any, Mapping[str, Any]]:
    """Observation and info that `reset` returned."""
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[1], Mapping):
        wanted = "wanted (observation, info), as in gymnasium"
        raise EnvironmentFailure(f"environment {env_id!r} returned {_described(given)} from reset, {wanted}")
    return given[0], given[1]


def step_result(given: Any, env_id: str) -> tuple[Any, float, bool, bool, Mapping[str, Any]]:
    """Observation, reward, terminated, truncated and info that `step` returned."""
    who = f"environment {env_id!r}"
    if not isinstance(given, tuple | list) or len(given) != 5:
        raise EnvironmentFailure(f"{who} returned {_described(given)} from step, wanted {STEP_GIVES}, as in gymnasium")
    obs, reward, terminated, truncated, info = given
    number = finite_number(reward)
    if number is None:
        raise EnvironmentFailure(f"{who} gave the reward {shown(reward)} in step, wanted a finite number")
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, bool) and finite_number(value) not in (0, 1):
            raise EnvironmentFailure(f"{who} gave {name} {shown(value)} in step, wanted True or False")
    if not isinstance(info, Mapping):
        raise EnvironmentFailure(f"{who} gave {_described(info)} as info in step, wanted a dict")
    return obs, number, bool(terminated), bool(truncated), info


def finite_number(value: Any) -> float | None:
    """A finite number within 32-bit range, also from an array of one number; None for anything else."""
    if not isinstance(value, float):
        if isinstance(value, str | bytes):
            return None
        try:
            is_array = hasattr(value, "shape") or isinstance(value, list | tuple)
            value = float(np.asarray(value).item() if is_array else value)
        except (TypeError, ValueError, OverflowError):
            return None
    return float(value) if abs(value) <= LARGEST_FLOAT else None  # neither is NaN


def _described(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__
