"""Looks inside environments that wrappers surround: for NetHack, and for step limits.

Invariant: a wrapper's step limit is read and lifted, so that Delphi's own is the only one, however it was registered.
"""

from collections.abc import Iterator
from typing import Any

from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from configs.schema import EnvConfig

NO_LIMIT = 1 << 62
TRANSPARENT = (OrderEnforcing, PassiveEnvChecker, TimeLimit)
"""Gymnasium's own wrappers that change nothing once their limit is lifted."""


def layers(env: Any) -> Iterator[Any]:
    """The environment and everything that it wraps, outermost first."""
    seen: set[int] = set()
    while env is not None and id(env) not in seen:
        seen.add(id(env))
        yield env
        held = vars(env) if hasattr(env, "__dict__") else {}
        inner = held.get("env", held.get("_env"))
        env = inner if callable(getattr(inner, "step", None)) else getattr(env, "unwrapped", None)


def innermost(env: Any) -> Any:
    """The innermost wrapped environment, or the environment itself."""
    return list(layers(env))[-1]


def descends_from_nethack(creator: Any) -> bool:
    """Whether a class derives from one of NLE's, whatever its package."""
    return isinstance(creator, type) and any(base.__module__.partition(".")[0] == "nle" for base in creator.__mro__)


def nethack_within(env: Any, env_id: str, captioner: str) -> tuple[bool, tuple[str, ...]]:
    """Whether an environment is played as NetHack, and the user's notices if it is NetHack but is not played as such:
    wrappers change its observations, or its captions are not the messages."""
    game, played = innermost(env), strip(env)
    if not descends_from_nethack(type(game)):
        return False, ()
    own = played.observation_space != game.observation_space
    if played is game or (captioner == "message" and not own):
        return True, ()
    why = "their observations are not NetHack's" if own else f"env.captioner is {captioner}"
    how = "remove the wrappers, or register the class itself" if own else "set env.captioner=message"
    return False, (
        f"environment {env_id!r} is NetHack within {wrapper_names(played)}, and is played as any other, since {why}:"
        " the last messages of episodes are lost, the run's seed is ignored, and there is no glyph network;"
        f" {how} to have them",
    )


def wrapper_names(played: Any) -> str:
    """The wrappers around a game, outermost first."""
    return ", ".join(type(layer).__name__ for layer in list(layers(played))[:-1])


def strip(env: Any) -> Any:
    """The environment without outermost wrappers that change nothing."""
    while isinstance(env, TRANSPARENT):
        env = env.env
    return env


def lift_time_limits(env: Any) -> int:
    """Remove the limits of all TimeLimit wrappers within; returns the lowest of them, 0 if there is none."""
    limits = []
    for layer in layers(env):
        if isinstance(layer, TimeLimit):
            limits.append(int(layer._max_episode_steps))
            layer._max_episode_steps = NO_LIMIT
    return min(limits, default=0)


def lowest(*limits: int | None) -> int:
    """The lowest step limit; 0 and None mean no limit."""
    return min((limit for limit in limits if limit), default=0)


def step_limit(config: EnvConfig, own: int, env_id: str) -> tuple[int, list[str]]:
    """The step limit to enforce (0: none), and notices for the user if it exceeds the environment's `own`."""
    wanted = config.max_episode_steps
    if not wanted or not own or wanted <= own:
        return wanted or own, []
    return wanted, [
        f"environment {env_id!r}: env.max_episode_steps={wanted} lets episodes run longer than its own limit of {own}"
        " steps, which makes it another task; env.max_episode_steps=0 keeps its own"
    ]
