"""What lies inside an environment that wrappers surround: NetHack, and step limits.

Invariant: a limit that a wrapper keeps is read and lifted, so that Delphi's own is the only one, whichever way it was registered.
"""

from collections.abc import Iterator
from typing import Any

from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from configs.schema import EnvConfig

NO_LIMIT = 1 << 62
TRANSPARENT = (OrderEnforcing, PassiveEnvChecker, TimeLimit)
"""Gymnasium's own wrappers that change nothing once their limit is lifted."""


def layers(env: Any) -> Iterator[Any]:
    """The environment and, within it, whatever it wraps, outermost first."""
    seen: set[int] = set()
    while env is not None and id(env) not in seen:
        seen.add(id(env))
        yield env
        held = vars(env) if hasattr(env, "__dict__") else {}
        inner = held.get("env", held.get("_env"))
        env = inner if callable(getattr(inner, "step", None)) else getattr(env, "unwrapped", None)


def innermost(env: Any) -> Any:
    """What is wrapped, or the environment itself."""
    return list(layers(env))[-1]


def descends_from_nethack(creator: Any) -> bool:
    """Whether a class is one of NLE's, whatever package it is from."""
    return isinstance(creator, type) and any(base.__module__.partition(".")[0] == "nle" for base in creator.__mro__)


def nethack_within(env: Any, env_id: str, captioner: str) -> tuple[bool, tuple[str, ...]]:
    """Whether an environment is played as NetHack, and what the user must be told where it is one and is not.

    It is not where wrappers make observations of their own, or its captions are to be others than the messages.
    """
    game, played = innermost(env), strip(env)
    if not descends_from_nethack(type(game)):
        return False, ()
    own = played.observation_space != game.observation_space
    if played is game or (captioner == "message" and not own):
        return True, ()
    why = "their observations are not NetHack's" if own else f"env.captioner is {captioner}"
    how = "leave the wrappers out, or register the class itself" if own else "take env.captioner=message"
    return False, (
        f"environment {env_id!r} is NetHack within {wrapper_names(played)}, and is played as any other, since {why}: the last messages of episodes"
        f" are lost, the run's seed is ignored, and there is no glyph network; {how} to have them",
    )


def wrapper_names(played: Any) -> str:
    """The wrappers around a game, outermost first."""
    return ", ".join(type(layer).__name__ for layer in list(layers(played))[:-1])


def strip(env: Any) -> Any:
    """Without the outermost wrappers that change nothing."""
    while isinstance(env, TRANSPARENT):
        env = env.env
    return env


def lift_time_limits(env: Any) -> int:
    """Take away the limits of all TimeLimit wrappers within; the lowest of them, 0 where there is none."""
    limits = []
    for layer in layers(env):
        if isinstance(layer, TimeLimit):
            limits.append(int(layer._max_episode_steps))
            layer._max_episode_steps = NO_LIMIT
    return min(limits, default=0)


def add_registered_wrappers(env: Any, spec: EnvSpec) -> Any:
    """The wrappers that the environment was registered with."""
    for wrapper in spec.additional_wrappers:
        env = load_env_creator(wrapper.entry_point)(env=env, **(wrapper.kwargs or {}))
    return env


def lowest(*limits: int | None) -> int:
    """The lowest step limit; 0 or None is none."""
    return min((limit for limit in limits if limit), default=0)


def step_limit(config: EnvConfig, own: int, env_id: str) -> tuple[int, list[str]]:
    """The limit that is kept (0: none), and what the user must be told where it lets episodes run longer than the environment's `own`."""
    wanted = config.max_episode_steps
    if not wanted or not own or wanted <= own:
        return wanted or own, []
    return wanted, [
        f"environment {env_id!r}: env.max_episode_steps={wanted} lets episodes run longer than its own limit of {own} steps, which makes it"
        " another task; env.max_episode_steps=0 keeps its own"
    ]
