"""Looks inside environments that wrappers surround: for NetHack, and for step limits.

Invariant: a wrapper's step limit stays as it is, wherever it counts, unless the user's is longer.
"""

import math
from collections.abc import Iterator
from typing import Any

from gymnasium import Env
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from actors.environments.errors import environment_failure
from actors.environments.protocol import declared_space
from configs.schema import EnvConfig

NO_LIMIT = 1 << 62
TRANSPARENT = (OrderEnforcing, PassiveEnvChecker, TimeLimit)
"""Gymnasium's own wrappers that change nothing but the step limit; classes derived from them may."""
NEW_GAMES = "they make a new game in reset"


def layers(env: Any, *, anywhere: bool = False) -> Iterator[Any]:
    """The environment and everything that it wraps, outermost first. `anywhere`: also an only environment that one
    keeps under a name of its own; it may be what is played, or a model for planning."""
    seen: set[int] = set()
    while env is not None and id(env) not in seen:
        seen.add(id(env))
        yield env
        held = vars(env) if hasattr(env, "__dict__") else {}
        inner = held.get("env", held.get("_env"))
        if not callable(getattr(inner, "step", None)):
            others = [value for value in held.values() if isinstance(value, Env)] if anywhere else []
            inner = others[0] if len(others) == 1 else getattr(env, "unwrapped", None)
        env = inner


def innermost(env: Any) -> Any:
    """The innermost wrapped environment, or the environment itself."""
    return list(layers(env, anywhere=True))[-1]


def descends_from_nethack(creator: Any) -> bool:
    """Whether a class derives from one of NLE's, whatever its package."""
    return isinstance(creator, type) and any(base.__module__.partition(".")[0] == "nle" for base in creator.__mro__)


def nethack_within(env: Any, env_id: str, captioner: str) -> tuple[bool, tuple[str, ...]]:
    """Whether an environment is played as NetHack, and the user's notices if it is NetHack but is not played as such:
    wrappers change its observations or make a new game in reset, or its captions are not the messages."""
    game, played = innermost(env), strip(env)
    if not descends_from_nethack(type(game)):
        return False, ()
    if played is game:
        return True, ()
    how = "remove the wrappers, or register the class itself"
    if declared_space(played, "observation_space", env_id) != game.observation_space:
        why = "their observations are not NetHack's"
    elif captioner != "message":
        why, how = f"env.captioner is {captioner}", "set env.captioner=message"
    elif _is_replaced(env, game, env_id):
        why = NEW_GAMES
    else:
        return True, ()
    return False, (_played_as_any_other(env_id, wrapper_names(played), why, how),)


def made_in_reset(env: Any, env_id: str) -> list[str]:
    """The user's notice if an environment without one, just reset, turns out to have NetHack within."""
    if not descends_from_nethack(type(innermost(env))):
        return []
    return [_played_as_any_other(env_id, wrapper_names(strip(env)), NEW_GAMES, "register the class itself")]


def _is_replaced(env: Any, game: Any, env_id: str) -> bool:
    """Whether a reset puts another game in the place of this one."""
    try:
        env.reset(seed=0)
    except BaseException as error:
        environment_failure(env_id, error, "reset")  # it will be raised again, and reported, where an episode starts
    return innermost(env) is not game


def _played_as_any_other(env_id: str, wrappers: str, why: str, how: str) -> str:
    return (
        f"environment {env_id!r} is NetHack within {wrappers}, and is played as any other, since {why}: the last"
        " messages of episodes are lost, the run's seed is ignored, and there is no glyph network;"
        f" {how} to have them"
    )


def wrapper_names(played: Any) -> str:
    """The wrappers around a game, outermost first."""
    return ", ".join(type(layer).__name__ for layer in list(layers(played, anywhere=True))[:-1])


def strip(env: Any) -> Any:
    """The environment without outermost wrappers that change nothing."""
    while type(env) in TRANSPARENT:
        env = env.env
    return env


def lowest_time_limit(env: Any) -> int:
    """The lowest limit of the TimeLimit wrappers within; 0 if there is none."""
    return lowest(*(layer._max_episode_steps for layer in layers(env) if isinstance(layer, TimeLimit)))


def lengthen(env: Any, limit: int) -> None:
    """Let no TimeLimit wrapper within end an episode before `limit` steps; a lower limit changes nothing. A class
    derived from TimeLimit may do more at its limit than end the episode, and keeps one."""
    for layer in layers(env):
        if isinstance(layer, TimeLimit) and layer._max_episode_steps < limit:
            layer._max_episode_steps = NO_LIMIT if type(layer) is TimeLimit else limit


def lowest(*limits: float | None) -> int:
    """The lowest step limit, in whole steps; None, infinity, and numbers that are not positive mean no limit."""
    return min((math.ceil(limit) for limit in limits if limit and 0 < limit < math.inf), default=0)


def step_limit(config: EnvConfig, own: int, env_id: str) -> tuple[int, list[str]]:
    """The step limit to enforce (0: none), and notices for the user if it exceeds the environment's `own`."""
    wanted = config.max_episode_steps
    if not wanted or not own or wanted <= own:
        return wanted or own, []
    return wanted, [
        f"environment {env_id!r}: env.max_episode_steps={wanted} lets episodes run longer than its own limit of {own}"
        " steps, which makes it another task; env.max_episode_steps=0 keeps its own"
    ]
