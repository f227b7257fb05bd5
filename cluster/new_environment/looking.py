"""Looks at an environment for `delphi new-environment`: its spaces, actions, step limit and info, and what random play
shows in them.

Invariant: everything is found out from the environment itself, in a few hundred random steps of episodes that training
does not use; what it raises is an `EnvironmentFailure` in one line.
"""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from actors.captions import normalize
from actors.environments.captioner import to_bytes
from actors.environments.errors import EnvironmentFailure, close_quietly, fail
from actors.environments.factory import make_environment
from actors.environments.gymnasium_vector import make_single
from actors.environments.lookup import find_environment
from actors.environments.observations import Entry, ObservationReader, entry_name, leaves
from actors.environments.protocol import action_names, declared_space, discrete_actions, reset_result, step_result
from actors.environments.vector import ArraySpec
from actors.environments.wrappers import innermost, lowest, lowest_time_limit, nethack_within
from cluster.new_environment.things import Thing, things_of_entry, things_of_info
from configs.schema import EnvConfig, RunConfig

STEPS = 400
"""Random steps from which ranges are measured."""
RECORDED_BYTES = 1 << 26
"""Observations kept at a time; where they are larger, there are fewer steps."""
EPISODE_STEPS = 100
"""Episodes are cut here, so that several beginnings are seen."""
MOST_NAMED = 8
"""Entries of an observation that are named to the user."""
FAMILIES = {"minihack": "MiniHack", "nle": "NetHack", "minigrid": "MiniGrid", "ale_py": "Atari"}
"""Package of a class, or of one that it derives from -> what the environment is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image of an observation."""

    name: str
    shape: tuple[int, ...]
    highest: float  # the highest value declared, or that was seen where the declared one says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was found out about an environment."""

    env_id: str
    family: str  # one of FAMILIES, or empty
    observation: str  # its observation space
    actions: tuple[str, ...]  # names, or empty
    num_actions: int
    step_limit: int  # 0: none is known
    steps: int  # random steps played
    own_text: str  # observation entry whose text says what happens, or empty; of NetHack the messages
    minigrid: str = ""  # the function of `actors.minigrid_captions` that describes it, or empty
    things: tuple[Thing, ...] = ()
    images: tuple[Image, ...] = ()
    rewards: tuple[float, float] = (0.0, 0.0)  # lowest and highest


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenCaption:
    """A caption of random play."""

    text: str
    count: int
    reward: float  # the environment's mean reward of the steps that showed it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    arrays: dict[str, np.ndarray]  # entry -> [steps, ...], as policies read it
    infos: list[Mapping[str, Any]]
    begins: np.ndarray  # [steps] bool: the first of an episode
    rewards: list[float]
    first: tuple[Any, Mapping[str, Any]]  # a whole observation and its info
    missions: set[str]


def look_at(env_id: str) -> Look:
    """What there is to know about the environment `env_id`. Raises ValueError, in one line, for an unknown id, an
    environment that cannot be played here, and whatever it raises."""
    spec = find_environment(env_id)
    env = make_single(spec, EnvConfig(id=env_id))
    try:
        first_action, num_actions = discrete_actions(env, spec.id)
        space = declared_space(env, "observation_space", spec.id)
        found: dict[str, Any] = {
            "env_id": env_id,
            "family": _family(env),
            "observation": _observation(space),
            "actions": action_names(env, first_action, num_actions),
            "num_actions": num_actions,
        }
        own_limit = lowest(spec.max_episode_steps, lowest_time_limit(env))
        if nethack_within(env, spec.id, "message")[0]:
            return Look(**found, step_limit=lowest(own_limit, _inner_limit(env)), steps=0, own_text="message")
        reader = ObservationReader(space, spec.id, None)
        row_bytes = sum(_row_bytes(entry.spec) for entry in reader.entries.values())
        record = _play(env, spec.id, reader, (first_action, num_actions), _steps(row_bytes))
        step_limit = lowest(own_limit, _inner_limit(env))  # BabyAI sets its own in reset
        return Look(**found, step_limit=step_limit, **_described(reader, record, found["family"]))
    finally:
        close_quietly(env)


def captions_of_random_play(config: RunConfig, *, num_envs: int = 8, steps: int = 250) -> list[SeenCaption]:
    """The captions that a run with this configuration would get at random, most frequent first, without the empty one;
    at most ten seconds. Raises EnvironmentFailure."""
    seen: dict[str, list[float]] = {}
    read = partial(normalize, fold_case=config.env.fold_case, fold_digits=config.env.fold_digits)
    ends = time.monotonic() + 10.0
    settings: dict[str, Any] = {"run_seed": config.seed, "worker_index": 0, "stream": "look", "policy": config.policy}
    with closing(make_environment(config.env, num_envs=num_envs, **settings)) as env:
        env.reset()
        for actions in np.random.default_rng(0).integers(0, env.spec.num_actions, (steps, num_envs)):
            step = env.step(actions)
            for raw, reward in zip(step.captions, step.rewards.tolist(), strict=True):
                seen.setdefault(read(raw), []).append(reward)
            if time.monotonic() > ends:
                break
        errors, failure = env.take_errors()
        if errors:
            raise EnvironmentFailure(failure.strip().splitlines()[-1])
    seen.pop("", None)
    found = [SeenCaption(text=text, count=len(of), reward=sum(of) / len(of)) for text, of in seen.items()]
    return sorted(found, key=lambda caption: (-caption.count, caption.text))


def _family(env: Any) -> str:
    packages = [base.__module__.partition(".")[0] for base in type(innermost(env)).__mro__]
    return next((name for package, name in FAMILIES.items() if package in packages), "")


def _inner_limit(env: Any) -> float | None:
    """The limit that MiniGrid, NetHack and others keep themselves."""
    inner = innermost(env)
    limit = getattr(inner, "max_steps", getattr(inner, "_max_episode_steps", None))
    return limit if isinstance(limit, int) else None


def _observation(space: gymnasium.Space) -> str:
    """The entries of an observation space, without their bounds."""
    entries = [
        f"{entry_name(path)} ({type(leaf).__name__}{' of ' + 'x'.join(map(str, leaf.shape)) if leaf.shape else ''})"
        for path, leaf in leaves(space)
    ]
    more = f" and {len(entries) - MOST_NAMED} more" if len(entries) > MOST_NAMED else ""
    return ", ".join(entries[:MOST_NAMED]) + more


def _steps(row_bytes: int) -> int:
    return max(min(STEPS, RECORDED_BYTES // max(row_bytes, 1)), 16)


def _row_bytes(spec: ArraySpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * spec.dtype.itemsize


def _play(env: gymnasium.Env, env_id: str, reader: ObservationReader, actions: tuple[int, int], steps: int) -> _Record:
    """`steps` random steps. Raises EnvironmentFailure."""
    arrays = {name: np.zeros((steps, *spec.shape), spec.dtype) for name, spec in reader.specs.items()}
    infos: list[Mapping[str, Any]] = []
    rewards, missions, begins = [], set(), np.zeros(steps, bool)
    rng, age, first = np.random.default_rng(0), EPISODE_STEPS, None
    for i in range(steps):
        where = "reset" if age >= EPISODE_STEPS else "step"
        try:
            if where == "reset":
                obs, info = reset_result(env.reset(seed=i), env_id)
                age, begins[i] = 0, True
                missions.add(str(obs.get("mission", "")) if isinstance(obs, Mapping) else "")
            else:
                given = env.step(actions[0] + int(rng.integers(actions[1])))
                obs, reward, terminated, truncated, info = step_result(given, env_id)
                rewards.append(reward)
                age = EPISODE_STEPS if terminated or truncated else age + 1
        except BaseException as error:
            fail(env_id, error, where)
        reader.write(arrays, i, obs, where)
        infos.append(dict(info))
        first = first or (obs, info)
    assert first is not None
    return _Record(arrays=arrays, infos=infos, begins=begins, rewards=rewards, first=first, missions=missions)


def _described(reader: ObservationReader, record: _Record, family: str) -> dict[str, Any]:
    """The fields of a `Look` that random play tells."""
    from actors.networks.encoders import is_image

    things: list[Thing] = []
    images, own_text = [], ""
    for name, entry in reader.entries.items():
        array = record.arrays[name]
        if _says_what_happens(entry, array, record.begins):
            own_text = own_text or name
        elif is_image(entry.spec):
            declared = float(np.max(entry.space.high)) if isinstance(entry.space, gymnasium.spaces.Box) else 255.0
            highest = declared if declared < 255 else float(array.max())
            images.append(Image(name=name, shape=entry.spec.shape, highest=highest))
        things += things_of_entry(entry, array)
    return {
        "steps": len(record.infos),
        "own_text": own_text,
        "minigrid": _minigrid_captioner(record) if family == "MiniGrid" else "",
        "things": tuple(things + things_of_info(record.infos)),
        "images": tuple(images),
        "rewards": (min(record.rewards, default=0.0), max(record.rewards, default=0.0)),
    }


def _says_what_happens(entry: Entry, array: np.ndarray, begins: np.ndarray) -> bool:
    """Whether an entry's bytes are a text that changes within an episode: a message, not a mission."""
    if array.ndim != 2 or array.dtype != np.uint8 or array.shape[1] < 8:
        return False
    if not entry.spec.is_text:
        texts = [(to_bytes(row) or b"").decode() for row in array]
        ends = [bool(row[len(text.encode()) :].any()) for row, text in zip(array, texts, strict=True)]
        # Letters alone may be codes, as those of NetHack's inventory: a message has words.
        if any(ends) or not all(map(str.isprintable, texts)) or " " not in "".join(texts):
            return False
    return bool((array[1:] != array[:-1]).any(axis=1)[~begins[1:]].any())


def _minigrid_captioner(record: _Record) -> str:
    """The function of `actors.minigrid_captions` for what this environment observes; empty for pictures and others."""
    from actors.minigrid_captions import describe

    try:
        describe(*record.first)
    except Exception:  # of an observation that a wrapper made: it has another form than the agent's view
        return ""
    return "describe_for_mission" if len(record.missions) > 1 else "describe"
