"""NetHack and MiniHack as vector environments: B games in arrays that their engines write.

Invariant: an episode's last observation, message and metrics are from inside the game; its step limit is enforced here
and truncates; and `env.stepping` changes only the speed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from actors.environments.describer import BUILT_IN, NETHACK, make_describer
from actors.environments.errors import close_quietly, fail
from actors.environments.nethack.action_names import name_of
from actors.environments.nethack.crop import MAP_CELLS, view_for
from actors.environments.nethack.episode_stats import TIME, EpisodeStats, X, Y
from actors.environments.nethack.features import ScreenFeatures
from actors.environments.nethack.game import INVENTORY, TERMINAL, Game, make_screens
from actors.environments.nethack.lean_rewards import goal_reward
from actors.environments.nethack.lean_stepping import make_stepping
from actors.environments.nethack.states import DescribedScreens, ScreenDescriber, describe_by
from actors.environments.protocol import discrete_actions, given_action_names
from actors.environments.rebuilding import RebuildingVector
from actors.environments.vector import ArraySpec, EnvironmentSpec, EpisodeEnd, SeedStream, VectorStep
from actors.environments.wrappers import NO_LIMIT, step_limit, wrapper_names
from configs.schema import EnvConfig, PolicyConfig


class NetHackEnvironment(RebuildingVector):
    """B games; observations: the window around the agent that the policy's network sees, `blstats` [27] f32, `message`
    [256] u8, and for `nethack_full` the inventory's `inv_letters` and `inv_oclasses` [55] u8. For people
    also TERMINAL's: `tty_chars` [24, 80] u8, `tty_colors` [24, 80] i8 and `tty_cursor` [2] u8."""

    def __init__(
        self,
        spec: EnvSpec,
        config: EnvConfig,
        num_envs: int,
        seeds: SeedStream,
        policy: PolicyConfig,
        *,
        shows_terminal: bool = False,
    ) -> None:
        """Raises ValueError for options that the environment does not take."""
        if config.captioner != "message":
            wanted = f"env.captioner must be 'message', got {config.captioner!r}"
            raise ValueError(f"captions of {spec.id!r} are its message lines: {wanted}")
        super().__init__(spec, config, num_envs, seeds)
        self._describer = _make_describer(config.describer, spec.id, num_envs)
        self._states = [] if self._describer is None else [b""] * num_envs
        self._screen_features = ScreenFeatures(config, spec.id)
        self._view = view = view_for(policy.network, policy.crop_size)
        layers = dict.fromkeys(("glyphs", *view.layers))  # NLE's tasks always read the glyphs
        inventory = INVENTORY if policy.network == "nethack_full" else ()
        self._copied = ("blstats", "message", *inventory, *(TERMINAL if shows_terminal else ()))
        self._screens = make_screens(num_envs, tuple(layers), self._copied)
        self._glyphs, self._blstats = self._screens["glyphs"][:, :MAP_CELLS], self._screens["blstats"]
        self._games: list[Game] = []
        self._make_games()
        model = self._games[0]
        num_actions = discrete_actions(model.played, spec.id)[1]
        try:
            names = given_action_names(config.action_names, num_actions, spec.id)
            self._name_features()
        except ValueError:
            self.close()
            raise
        self._step_limit, notices = step_limit(config, model.step_limit, spec.id)
        if model.is_wrapped:
            notices.append(
                f"environment {spec.id!r} is NetHack within {wrapper_names(model.played)}: rewards, actions and ends"
                " are theirs; observations are NetHack's own, unchanged by the wrappers, and stepping is slower;"
                " register the class itself to avoid both"
            )
        self._metrics = EpisodeStats(num_envs)
        self._obs: dict[str, np.ndarray] = {}
        observations = {view.entry: view.spec}
        for name in self._copied:
            shape, dtype = self._screens[name].shape[1:], self._screens[name].dtype
            dtype = np.dtype(np.float32) if name == "blstats" else dtype
            observations[name] = ArraySpec(shape=shape, dtype=dtype, num_values=INVENTORY.get(name, 0))
        self.spec = EnvironmentSpec(
            observations=observations,
            num_actions=num_actions,
            goal_reward=None if model.is_wrapped or not self._step_limit else goal_reward(model.env, self._step_limit),
            notices=tuple(notices),
            action_names=names or self._own_action_names(num_actions),
            features=self._screen_features.names,
        )

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Start the next game everywhere."""
        captions = self._start_all()
        self._notices += self._screen_features.take_notices()
        return self._obs, captions

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None = None) -> VectorStep:
        """Take one action in each game. If one raises, some have taken theirs and some have not: all are rebuilt."""
        try:
            return self._step(actions, out)
        except BaseException as error:
            self._note(error, "step")
            self._make_games()
            losses = dict(enumerate(self._start_all(out)))
            step = replace(self._quiet_step(self._obs), losses=losses)
            step.truncated[:] = True
            return step

    def _step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None) -> VectorStep:
        rewards, statuses, captions = self._stepping.step(actions)
        finite = np.isfinite(rewards)
        if not finite.all():  # custom rewards of a level may have any value
            raise self._failure(f"gave the reward {rewards[~finite][0]} in step, wanted a finite number")
        self._steps += 1
        self._metrics.update(self._glyphs, self._blstats, captions)
        # Without a step limit NLE aborts only if NetHackChallenge sees no progress: the task has not ended then either.
        terminated = statuses > 0
        truncated = ((statuses < 0) | (self._steps >= (self._step_limit or NO_LIMIT))) & ~terminated
        over = (terminated | truncated).nonzero()[0].tolist()
        states, features = self._look(over)
        ends = [self._end(i, int(statuses[i])) for i in over]
        self._obs = self._observe(self._screens, out)
        self._notices += self._screen_features.take_notices()
        return VectorStep(
            obs=self._obs,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            captions=captions,
            states=states,
            features=features,
            ends=ends,
        )

    def interface(self) -> dict[str, Any]:
        """See `VectorEnvironment`."""
        view = self._view
        return {
            "kind": "nethack",
            "first_action": 0,
            "view": {"entry": view.entry, "layers": list(view.layers), "size": list(view.spec.shape[:2])},
            "copied": {name: list(self.spec.observations[name].shape) for name in self._copied},
        }

    def state_dict(self) -> dict[str, Any]:
        """How many games each environment has started: NetHack cannot save a running game for another engine."""
        return {"exact": False, "episodes": self._episodes.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `reset` starts the games after the saved ones."""
        self._episodes[:] = state["episodes"]

    def close(self) -> None:
        """Close the engines and remove their temporary directories."""
        for game in self._games:
            close_quietly(game.played)

    def _own_action_names(self, num_actions: int) -> tuple[str, ...]:
        """None where wrappers may have renumbered the actions."""
        game = self._games[0]
        return () if game.is_wrapped else tuple(name_of(int(key)) for key in game.env.actions[:num_actions])

    def _make_games(self) -> None:
        self.close()
        self._games = []
        try:
            for i in range(self.num_envs):
                screen = {name: array[i] for name, array in self._screens.items()}
                self._games.append(Game(self._gymnasium_spec, self._config, screen))
        except BaseException:
            self.close()
            raise
        env_id = self._gymnasium_spec.id
        try:
            self._stepping = make_stepping(self._games, self._screens, self._config.stepping, env_id)
        except BaseException as error:  # for example actions that are no keys
            self.close()
            fail(env_id, error, "making")

    def _start_all(self, out: dict[str, np.ndarray] | None = None) -> list[bytes]:
        """Start and observe the next game everywhere, in new games if one raises; returns the first raw captions."""
        captions = self._attempt(self._start_each, self._make_games)
        self._obs = self._observe(self._screens, out)
        return captions

    def _start_each(self) -> list[bytes]:
        captions = [self._start(i) for i in range(self.num_envs)]
        if self._describer is not None:
            self._states = self._describer(self._screens)
        if self._features.size:
            self._features = self._screen_features(self._screens)
        return captions

    def _start(self, i: int) -> bytes:
        episode = int(self._episodes[i])
        self._episodes[i] += 1
        caption = self._stepping.start(i, self._seeds.seed(i, episode, "core"), self._seeds.seed(i, episode, "disp"))
        self._steps[i] = 0
        self._metrics.start(i, self._glyphs[i], self._blstats[i])
        return caption

    def _end(self, i: int, status: int) -> EpisodeEnd:
        """Save the episode's last screen and metrics, then start the next episode."""
        game, screen = self._games[i], self._last_screen(i)
        if screen is not None:
            final_obs = self._observe(screen)
        else:
            final_obs = {name: array[i : i + 1].copy() for name, array in self._obs.items()}
        info = self._metrics.end(i, final_obs["blstats"][0])
        if game.has_goal:
            info["success"] = float(game.success(status))
        last_obs = {name: array[0] for name, array in final_obs.items()}
        end = EpisodeEnd(index=i, final_obs=last_obs, reset_caption=self._start(i), info=info)
        if self._describer is not None:
            self._states[i] = self._describer(_row(self._screens, i))[0]
        if self._features.size:
            self._features[i] = self._screen_features(_row(self._screens, i))[0]
        return end

    def _name_features(self) -> None:
        """Fix the names of the features, by a game that is not played where they depend on a state."""
        if self._screen_features.needs_state:
            seeds = [self._naming_seed(purpose) for purpose in ("core", "disp")]
            self._attempt(lambda: self._stepping.start(0, *seeds), self._make_games)
        self._screen_features.fix(self._screens)
        self._features = np.full((self.num_envs, len(self._screen_features.names)), np.nan, np.float32)

    def _last_screen(self, i: int) -> Mapping[str, np.ndarray] | None:
        """The last screen inside game `i`, which is over, as a row; None where the engine stopped within one of its
        steps: then the previous step showed it."""
        last = self._games[i].last_screen
        if last is not None:
            return {name: array[None] for name, array in last.items()}
        return _row(self._screens, i) if self._blstats[i].any() else None

    def _look(self, over: list[int]) -> tuple[list[bytes] | None, np.ndarray | None]:
        """The states that a step led to, in words and in features, in the games that are `over` those of their last
        screens; noted as the current ones."""
        if self._describer is None and not self._features.size:
            return None, None
        emptied = (self._blstats[:, TIME] == 0).nonzero()[0].tolist()
        last = {i: self._last_screen(i) for i in {*over, *emptied}}
        seen = [i for i in range(self.num_envs) if i not in last]  # other screens may be emptied: nobody is shown them
        if self._describer is not None:
            before, self._states = self._states, _of_rows(self._describer, self._screens, seen)
            for i, screen in last.items():
                self._states[i] = before[i] if screen is None else self._describer(screen)[0]
        if self._features.size:
            self._features = self._features.copy()
            if seen:
                self._features[seen] = self._screen_features(_rows(self._screens, seen))
            for i, screen in last.items():
                if screen is not None:
                    self._features[i] = self._screen_features(screen)[0]
        return self._states[:] or None, self._features.copy() if self._features.size else None

    def _observe(
        self, screens: Mapping[str, np.ndarray], out: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Observations of rows of raw screens, in `out` or new arrays."""
        blstats = screens["blstats"]
        if out is None:
            specs = self.spec.observations
            out = {name: np.empty((len(blstats), *spec.shape), spec.dtype) for name, spec in specs.items()}
        self._view.cut(screens, blstats[:, X], blstats[:, Y], out[self._view.entry])
        for name in self._copied:
            np.copyto(out[name], screens[name])
        return out


def _of_rows(describer: ScreenDescriber, screens: Mapping[str, np.ndarray], rows: list[int]) -> list[bytes]:
    """What a describer says of these rows, and nothing of the others."""
    said = [b""] * len(screens["blstats"])
    if len(rows) == len(said) or isinstance(describer, DescribedScreens):  # which knows each game by its row
        return describer(screens)
    for i, text in zip(rows, describer(_rows(screens, rows)), strict=True):
        said[i] = text
    return said


def _rows(screens: Mapping[str, np.ndarray], rows: list[int]) -> Mapping[str, np.ndarray]:
    is_all = len(rows) == len(screens["blstats"])
    return screens if is_all else {name: array[rows] for name, array in screens.items()}


def _row(screens: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    return {name: array[i : i + 1] for name, array in screens.items()}


def _make_describer(describer: str, env_id: str, num_envs: int) -> ScreenDescriber | None:
    if describer == NETHACK:
        return DescribedScreens(num_envs)
    if describer in BUILT_IN:
        raise ValueError(f"env.describer: got {describer!r} for {env_id!r}, wanted nethack or module:function")
    function = make_describer(describer, env_id)
    return None if function is None else describe_by(function)
