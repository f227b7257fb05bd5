"""Any gymnasium environment with discrete actions as a vector environment, its captions read by a captioner.

Invariant: the step limit is kept here and reported as `truncated` with the episode's own last observation, and where the
environment can save itself (`state_dict` / `load_state_dict` on the unwrapped one), the whole vector continues bit for bit. One that raises is rebuilt, the others play on.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from actors.environment import START_ATTEMPTS, ArraySpec, EnvironmentErrors, EnvironmentLoss, EnvironmentSpec, EpisodeEnd, VectorStep
from actors.seeding import SeedStream
from configs.schema import EnvConfig

Captioner = Callable[[Any, Mapping[str, Any]], bytes]
"""(observation, info) -> raw caption, UTF-8."""
SUCCESS_KEYS = ("success", "is_success")
TEXT_BYTES = 256
"""Of a text that is no array, what the policy reads of it."""
SINGLE = "obs"
"""Name of the observation of environments whose observation space is not a Dict."""


class GymnasiumEnvironment:
    """B environments of one registered id, stepped in turn."""

    def __init__(self, spec: EnvSpec, config: EnvConfig, *, num_envs: int, seeds: SeedStream) -> None:
        """Raises ValueError for spaces and captioners that do not fit, and for options that the environment does not take."""
        self.num_envs = num_envs
        self._seeds, self._gymnasium_spec, self._config = seeds, spec, config
        self._errors = EnvironmentErrors()
        self._step_limit = config.max_episode_steps or spec.max_episode_steps or 0
        self._envs: list[gymnasium.Env] = []
        try:
            for _ in range(num_envs):
                self._envs.append(_make(spec, config))
            space, actions = self._envs[0].observation_space, self._envs[0].action_space
            if not isinstance(actions, spaces.Discrete):
                raise ValueError(f"environment {spec.id!r} has the action space {actions}; policies here need Discrete actions")
            self._first_action = int(actions.start)
            self._captioner, self._text = _make_captioner(config.captioner, space, spec.id)
            self._parts = space.spaces if isinstance(space, spaces.Dict) else {SINGLE: space}
            observations = {
                name: _text_spec(part) if name == self._text else _array_spec(name, part, spec.id) for name, part in self._parts.items()
            }
            self._is_dict = isinstance(space, spaces.Dict)
            self._can_save = all(hasattr(self._envs[0].unwrapped, name) for name in ("state_dict", "load_state_dict"))
        except BaseException:
            self.close()
            raise
        self.spec = EnvironmentSpec(observations=observations, num_actions=int(actions.n))
        self._obs = {name: np.zeros((num_envs, *array.shape), array.dtype) for name, array in observations.items()}
        self._episodes = np.zeros(num_envs, np.int64)
        self._steps = np.zeros(num_envs, np.int64)

    @property
    def running_episodes(self) -> np.ndarray:
        """The number of the episode that each environment plays."""
        return self._episodes - 1

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Start the next episode everywhere."""
        self._obs = {name: array.copy() for name, array in self._obs.items()}
        captions = [self._start(i) for i in range(self.num_envs)]
        return self._obs, captions

    def take_errors(self) -> tuple[int, str]:
        """Exceptions since the last call, and the first one's traceback."""
        return self._errors.take()

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None = None) -> VectorStep:
        """Take one action in each environment."""
        self._obs = {name: np.empty_like(array) for name, array in self._obs.items()} if out is None else out
        rewards = np.empty(self.num_envs, np.float32)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        captions: list[bytes] = []
        ends: list[EpisodeEnd] = []
        losses: list[EnvironmentLoss] = []
        self._steps += 1
        for i, (env, action) in enumerate(zip(self._envs, actions.tolist(), strict=True)):
            try:
                obs, reward, terminates, truncates, info = env.step(action + self._first_action)
                self._write(i, obs)
            except Exception:
                self._errors.note()
                self._rebuild(i)
                rewards[i], truncated[i] = 0.0, True
                captions.append(b"")
                losses.append(EnvironmentLoss(index=i, reset_caption=self._start(i)))
                continue
            rewards[i], terminated[i] = reward, terminates
            truncated[i] = not terminates and (truncates or self._steps[i] == self._step_limit)
            captions.append(self._captioner(obs, info))
            if terminated[i] or truncated[i]:
                final_obs = {name: array[i].copy() for name, array in self._obs.items()}
                ends.append(EpisodeEnd(index=i, final_obs=final_obs, reset_caption=self._start(i), info=_figures(info)))
        return VectorStep(
            obs=self._obs, rewards=rewards, terminated=terminated, truncated=truncated, captions=captions, ends=ends, losses=losses
        )

    def state_dict(self) -> dict[str, Any]:
        """Exact where the environment offers `state_dict`; otherwise how many episodes each environment has started."""
        state: dict[str, Any] = {"exact": self._can_save, "episodes": self._episodes.copy()}
        if self._can_save:
            state["steps"] = self._steps.copy()
            state["obs"] = {name: array.copy() for name, array in self._obs.items()}
            state["envs"] = {str(i): _savable(env).state_dict() for i, env in enumerate(self._envs)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The current observations where the state is exact, else None: then the next `reset` starts the episodes after it."""
        if len(state["episodes"]) != self.num_envs:
            raise ValueError(f"the saved state is of {len(state['episodes'])} environments, this vector has {self.num_envs}")
        self._episodes[:] = state["episodes"]
        if not state["exact"]:
            return None
        self._steps[:] = state["steps"]
        self._obs = {name: np.array(state["obs"][name], array.dtype) for name, array in self._obs.items()}
        for i, env in enumerate(self._envs):
            env.reset()  # gymnasium's order check wants one reset before the first step
            _savable(env).load_state_dict(state["envs"][str(i)])
        return self._obs

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            with suppress(Exception):  # what cannot be closed must not keep the others from it
                env.close()

    def _start(self, i: int) -> bytes:
        """Start the next episode, in a rebuilt environment where this one raises; its first raw caption."""
        for attempt in range(START_ATTEMPTS):
            # Some environments hand the seed to generators that take 32 bits.
            seed = self._seeds.seed(i, int(self._episodes[i])) % 2**31
            self._episodes[i] += 1
            try:
                obs, info = self._envs[i].reset(seed=seed)
                self._write(i, obs)
            except Exception:
                if attempt == START_ATTEMPTS - 1:
                    raise
                self._errors.note()
                self._rebuild(i)
                continue
            self._steps[i] = 0
            return self._captioner(obs, info)
        raise AssertionError  # the last attempt returns or raises

    def _rebuild(self, i: int) -> None:
        with suppress(Exception):  # it is broken already
            self._envs[i].close()
        self._envs[i] = _make(self._gymnasium_spec, self._config)

    def _write(self, i: int, obs: Any) -> None:
        for name, part in self._parts.items():
            value = obs[name] if self._is_dict else obs
            if name == self._text:
                row = self._obs[name][i]
                text = to_bytes(value, name)[: len(row)]
                row[: len(text)], row[len(text) :] = np.frombuffer(text, np.uint8), 0
                continue
            self._obs[name][i] = value - part.start if isinstance(part, spaces.Discrete | spaces.MultiDiscrete) else value


def _make(spec: EnvSpec, config: EnvConfig) -> gymnasium.Env:
    if "max_episode_steps" in config.options:
        raise ValueError("env.options has 'max_episode_steps', which the environment of a run sets itself; use env.max_episode_steps")
    try:
        # -1 takes gymnasium's own step limit away: it could not be saved.
        return gymnasium.make(spec, max_episode_steps=-1, disable_env_checker=True, **config.options)
    except (TypeError, gymnasium.error.Error) as error:
        raise ValueError(f"environment {spec.id!r} cannot be made with env.options {config.options}: {error}") from None


def _savable(env: gymnasium.Env) -> Any:
    """The bare environment; gymnasium's type knows neither `state_dict` nor `load_state_dict`."""
    return env.unwrapped


def _array_spec(name: str, space: spaces.Space, env_id: str) -> ArraySpec:
    """How one entry of the observations is handed on; ValueError for spaces that no network here reads."""
    if isinstance(space, spaces.Discrete):
        return ArraySpec(shape=(), dtype=np.dtype(np.int64), num_values=int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return ArraySpec(shape=space.shape, dtype=np.dtype(np.int64), num_values=int(space.nvec.max()))
    if isinstance(space, spaces.Box):
        dtype = np.dtype(np.float32) if np.issubdtype(space.dtype, np.floating) else np.dtype(space.dtype)
        return ArraySpec(shape=space.shape, dtype=dtype)
    raise ValueError(
        f"environment {env_id!r} observes {name!r} as {space}; policies here read Box, Discrete and MultiDiscrete, alone or in a Dict"
    )


def _text_spec(space: spaces.Space) -> ArraySpec:
    """How the entry that captions come from is handed on: as the bytes of a text, as many as the environment gives at most."""
    shape = space.shape if isinstance(space, spaces.Box) and len(space.shape) == 1 else (TEXT_BYTES,)
    return ArraySpec(shape=shape, dtype=np.dtype(np.uint8), is_text=True)


def _make_captioner(captioner: str, space: spaces.Space, env_id: str) -> tuple[Captioner, str | None]:
    """The function that reads captions, and the observation key that holds them as texts, if one does."""
    kind, colon, name = captioner.partition(":")
    if kind == "info" and colon:
        return lambda obs, info: _from_info(info, name, obs, captioner, env_id), None
    if colon:
        return _from_function(kind, name, captioner), None
    keys = list(space.spaces) if isinstance(space, spaces.Dict) else []
    if captioner not in keys:
        there = f"its keys are {', '.join(keys)}" if keys else f"its observation space is {space}, without keys"
        raise ValueError(
            f"env.captioner {captioner!r} is no observation key of {env_id!r}: {there}; "
            "give one of the keys, info:KEY, or module:function called with (obs, info)"
        )
    return lambda obs, info: to_bytes(obs[captioner], captioner), captioner


def _from_info(info: Mapping[str, Any], key: str, obs: Any, captioner: str, env_id: str) -> bytes:
    if key not in info:
        raise ValueError(
            f"env.captioner {captioner!r}: the info of {env_id!r} has no {key!r} (it has {', '.join(map(str, info)) or 'nothing'}); "
            "it must be there after every reset and step ('' where there is nothing to say), else use module:function"
        )
    return to_bytes(info[key], captioner)


def _from_function(module: str, name: str, captioner: str) -> Captioner:
    try:
        function = getattr(importlib.import_module(module), name)
        inspect.signature(function).bind(None, {})
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"env.captioner {captioner!r} cannot be called as function(obs, info): {error}") from None
    return lambda obs, info: to_bytes(function(obs, info), captioner)


def to_bytes(caption: Any, captioner: str) -> bytes:
    """UTF-8 of a caption given as str, bytes, or uint8 array padded with zeros (UTF-8, or Latin-1 where it is not that)."""
    if isinstance(caption, str):
        return caption.encode("utf-8", "replace")
    if isinstance(caption, np.ndarray) and caption.dtype == np.uint8:
        caption = caption.tobytes().partition(b"\0")[0]
    if not isinstance(caption, bytes):
        raise ValueError(
            f"env.captioner {captioner!r} gave {type(caption).__name__} {caption!r:.80}; captions are str, bytes or uint8 arrays"
        )
    try:
        caption.decode()
    except UnicodeDecodeError:
        return caption.decode("latin-1").encode()
    return caption


def _figures(info: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an episode's end that are logged."""
    for key in SUCCESS_KEYS:
        if isinstance(info.get(key), bool | int | float | np.number | np.bool_):
            return {"success": float(info[key])}
    return {}
