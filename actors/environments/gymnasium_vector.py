"""Any gymnasium environment with discrete actions as a vector environment; a captioner reads its captions, a describer
its states in words, and sources of features its states in numbers.

Invariant: the step limit is enforced here and reported as `truncated` with the episode's own last observation. If the
environment can save itself (`state_dict` / `load_state_dict` on the unwrapped one), the whole vector continues bit for
bit. An environment that raises, or returns values that are not finite or not as declared, is rebuilt; the others play
on.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from actors.environments.camera import Camera
from actors.environments.captioner import make_captioner
from actors.environments.describer import make_describer
from actors.environments.entry_values import text_of
from actors.environments.errors import close_quietly, fail, shown
from actors.environments.lookup import load_creator
from actors.environments.observations import ObservationReader, entry_name, leaves, pick
from actors.environments.protocol import (
    action_names,
    declared_space,
    discrete_actions,
    finite_number,
    given_action_names,
    reset_result,
    step_result,
)
from actors.environments.rebuilding import RebuildingVector
from actors.environments.vector import MISSION, EnvironmentSpec, EpisodeEnd, SeedStream, VectorStep
from actors.environments.wrappers import lengthen, lowest, lowest_time_limit, made_in_reset, step_limit
from actors.features.sources import FeatureReader
from configs.errors import one_line
from configs.schema import EnvConfig


class GymnasiumEnvironment(RebuildingVector):
    """B environments of one registered id, stepped in turn."""

    def __init__(
        self,
        spec: EnvSpec,
        config: EnvConfig,
        num_envs: int,
        seeds: SeedStream,
        first: Any,
        notices: tuple[str, ...],
        camera: Camera | None = None,
        instruction: str | None = None,
    ) -> None:
        """`first`: the first environment, from `make_single`; `notices`: its notices for the user; `instruction`:
        the text that is observed as the numbers of its words. Raises ValueError for unsuitable spaces and
        captioners, for options that the environment does not take, and for what it raises."""
        super().__init__(spec, config, num_envs, seeds)
        self._camera = camera
        self._is_looked_at = bool(notices)  # whether the user knows what is within
        self._envs = [first]  # gymnasium environments; None: to be made anew
        try:
            while len(self._envs) < num_envs:
                self._envs.append(make_single(spec, config, camera))
            model = self._envs[0]
            own = lowest(spec.max_episode_steps, lowest_time_limit(model))
            self._step_limit, of_limit = step_limit(config, own, spec.id)
            for env in self._envs:
                lengthen(env, self._step_limit)
            space = declared_space(model, "observation_space", spec.id)
            self._actions = self._first_action, num_actions = discrete_actions(model, spec.id)
            self._captioner, text = make_captioner(config.captioner, *_keys(space), spec.id)
            self._describer = make_describer(config.describer, spec.id)
            names = given_action_names(config.action_names, num_actions, spec.id)
            self._reader = ObservationReader(space, spec.id, text, instruction, stretches=config.stretch_bounds)
            self._feature_reader = FeatureReader(config, spec.id, model, space)
            self._name_features()
            self._can_save = all(hasattr(model.unwrapped, name) for name in ("state_dict", "load_state_dict"))
        except BaseException:
            self.close()
            raise
        observations = self._reader.specs
        self.spec = EnvironmentSpec(
            observations=observations,
            num_actions=num_actions,
            notices=(*notices, *of_limit, *self._reader.notices),
            has_small_bounds=self._reader.has_small_bounds,
            action_names=names or action_names(model, self._first_action, num_actions),
            features=self._feature_reader.names,
        )
        self._obs = {name: np.zeros((num_envs, *array.shape), array.dtype) for name, array in observations.items()}
        self._states = [] if self._describer is None else [b""] * num_envs
        mission = observations.get(MISSION)
        self._missions = [b""] * num_envs if mission is not None and mission.is_text else []

    @property
    def missions(self) -> list[bytes] | None:
        """See `VectorEnvironment`."""
        return self._missions or None

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Start the next episode everywhere."""
        self._obs = {name: array.copy() for name, array in self._obs.items()}
        captions = [self._start(i) for i in range(self.num_envs)]
        if not self._is_looked_at:
            self._is_looked_at = True
            self._notices += made_in_reset(self._envs[0], self._gymnasium_spec.id)
        self._notices += self._reader.outside_bounds(self._obs) + self._feature_reader.take_notices()
        return self._obs, captions

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None = None) -> VectorStep:
        """Take one action in each environment."""
        self._obs = {name: np.empty_like(array) for name, array in self._obs.items()} if out is None else out
        step = self._quiet_step(self._obs)
        self._steps += 1
        for i, action in enumerate(actions.tolist()):
            try:
                reward, terminates, truncates, caption, info = self._step(i, action + self._first_action)
            except BaseException as error:
                self._note(error, "step", i)
                self._discard(i)
                step.truncated[i] = True
                step.losses[i] = self._start(i)
                continue
            step.rewards[i], step.terminated[i], step.captions[i] = reward, terminates, caption
            if step.states is not None:
                step.states[i] = self._states[i]
            if step.features is not None:
                step.features[i] = self._features[i]
            step.truncated[i] = not terminates and (truncates or 0 < self._step_limit <= self._steps[i])
            if step.terminated[i] or step.truncated[i]:
                last = {name: array[i].copy() for name, array in self._obs.items()}
                end = EpisodeEnd(index=i, final_obs=last, reset_caption=self._start(i), info=_metrics(info))
                step.ends.append(end)
        self._notices += self._reader.outside_bounds(self._obs) + self._feature_reader.take_notices()
        return step

    def interface(self) -> dict[str, Any]:
        """See `VectorEnvironment`."""
        return {"kind": "gymnasium", "first_action": self._first_action, "entries": self._reader.as_json()}

    def state_dict(self) -> dict[str, Any]:
        """Exact if the environment has `state_dict`; otherwise how many episodes each environment has started."""
        state: dict[str, Any] = {"exact": self._can_save, "episodes": self._episodes.copy()}
        if self._can_save:
            state["steps"] = self._steps.copy()
            state["obs"] = {name: array.copy() for name, array in self._obs.items()}
            state["envs"] = {str(i): env.unwrapped.state_dict() for i, env in enumerate(self._envs)}
            if self._states:
                state["states"] = [described.decode() for described in self._states]
            if self._missions:
                state["missions"] = [mission.decode() for mission in self._missions]
            if self.features is not None:
                state["features"] = self._features.copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The current observations if the state is exact, else None: `reset` then starts the episodes after it."""
        if len(state["episodes"]) != self.num_envs:
            saved = len(state["episodes"])
            raise ValueError(f"the saved state is of {saved} environments, this vector has {self.num_envs}")
        self._episodes[:] = state["episodes"]
        if not state["exact"]:
            return None
        self._steps[:] = state["steps"]
        self._obs = {name: np.array(state["obs"][name], array.dtype) for name, array in self._obs.items()}
        for i, env in enumerate(self._envs):
            env.reset()  # gymnasium's order check wants one reset before the first step
            env.unwrapped.load_state_dict(state["envs"][str(i)])
        if self._states:
            self._states = [described.encode() for described in state["states"]]
        if self._missions and "missions" in state:
            self._missions = [mission.encode() for mission in state["missions"]]
        if self.features is not None:
            features = np.array(state["features"], np.float32)
            if features.shape != self._features.shape:
                number = self._features.shape[1]
                raise ValueError(f"the saved state has {features.shape[-1]} features, env.features gives {number}")
            self._features = features
        return self._obs

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            if env is not None:
                close_quietly(env)

    def _step(self, i: int, action: int) -> tuple[float, bool, bool, bytes, Mapping[str, Any]]:
        """Reward, terminated, truncated, raw caption and info; the observation is written into row `i`."""
        given = self._envs[i].step(action)
        obs, reward, terminates, truncates, info = step_result(given, self._gymnasium_spec.id)
        self._reader.write(self._obs, i, obs, "step")
        return reward, terminates, truncates, self._read(i, obs, info), info

    def _read(self, i: int, obs: Any, info: Mapping[str, Any]) -> bytes:
        """The raw caption; the state of environment `i` is noted, in words and in numbers."""
        if self._describer is not None:
            self._states[i] = self._describer(obs, info)
        if self._features.size:
            self._feature_reader.write(self._features[i], self._envs[i], obs, info)
        return self._captioner(obs, info)

    def _start(self, i: int) -> bytes:
        """Start the next episode, in a rebuilt environment if this one fails; returns its first raw caption."""
        return self._attempt(lambda: self._reset(i), lambda: self._discard(i), i)

    def _reset(self, i: int) -> bytes:
        # Some environments hand the seed to generators that take 32 bits.
        seed = self._seeds.seed(i, int(self._episodes[i])) % 2**31
        self._episodes[i] += 1
        self._steps[i] = 0
        env = self._made(i)
        obs, info = reset_result(env.reset(seed=seed), self._gymnasium_spec.id)
        actions = discrete_actions(env, self._gymnasium_spec.id)
        if actions != self._actions:
            is_now, was = (f"{n} actions from {first} on" for first, n in (actions, self._actions))
            raise self._failure(f"has {is_now} in reset, wanted {was}, as the first one made")
        self._reader.write(self._obs, i, obs, "reset")
        if self._missions:
            self._missions[i] = text_of(pick(obs, (MISSION,)))
        return self._read(i, obs, info)

    def _name_features(self) -> None:
        """Fix the names of the features, by an episode that is not played where they depend on a state."""
        obs, info = None, {}
        if self._feature_reader.needs_state:
            obs, info = self._attempt(self._reset_for_names, lambda: self._discard(0), 0)
        self._feature_reader.fix(obs, info)
        self._features = np.full((self.num_envs, len(self._feature_reader.names)), np.nan, np.float32)

    def _reset_for_names(self) -> tuple[Any, Mapping[str, Any]]:
        return reset_result(self._made(0).reset(seed=self._naming_seed() % 2**31), self._gymnasium_spec.id)

    def _made(self, i: int) -> gymnasium.Env:
        """Environment `i`, made anew if it has been discarded."""
        env = self._envs[i]
        if env is None:
            env = self._envs[i] = make_single(self._gymnasium_spec, self._config, self._camera)
            lengthen(env, self._step_limit)
        return env

    def _discard(self, i: int) -> None:
        """Close the environment; the next start makes a new one."""
        env, self._envs[i] = self._envs[i], None
        if env is not None:
            close_quietly(env)


def make_single(spec: EnvSpec, config: EnvConfig, camera: Camera | None = None) -> gymnasium.Env:
    """One environment, without gymnasium's step limit; ValueError for unknown options, and for what it raises."""
    if "max_episode_steps" in config.options:
        raise ValueError("env.options has 'max_episode_steps', which a run sets itself; use env.max_episode_steps")
    try:
        # -1 removes gymnasium's own step limit: its state could not be saved.
        options = config.options if camera is None else camera.options(load_creator(spec), config.options)
        env = gymnasium.make(spec, max_episode_steps=-1, disable_env_checker=True, **options)
        return env if camera is None else camera.mount(env)
    except BaseException as error:
        refuse_making(spec.id, config.options, error)


def refuse_making(env_id: str, options: Mapping[str, Any], error: BaseException) -> NoReturn:
    """Raise the error of making an environment as a one-line ValueError."""
    is_wrapped = "was raised from the environment creator" in str(error)  # by gymnasium
    if is_wrapped and error.__context__ is not None:
        error = error.__context__
    if isinstance(error, TypeError) and options and "argument" in str(error):
        what = f"environment {env_id!r} cannot be made with env.options {dict(options)}"
        raise ValueError(f"{what}: {one_line(error)}") from error
    fail(env_id, error, "making")


def _keys(space: spaces.Space) -> tuple[dict[str, Any], str]:
    """Sources of captions: entry name -> function that picks it; and a description of the observation space."""
    paths = {entry_name(path): path for path, _ in leaves(space)}
    named = isinstance(space, spaces.Dict | spaces.Tuple)
    there = f"its keys are {', '.join(paths)}" if named else f"its observation space is {shown(space)}, without keys"
    return {name: lambda obs, path=path: pick(obs, path) for name, path in paths.items()}, there


def _metrics(info: Mapping[str, Any]) -> dict[str, float]:
    told = (finite_number(info.get(key)) for key in ("success", "is_success"))
    success = next((number for number in told if number is not None), None)
    return {} if success is None else {"success": success}
