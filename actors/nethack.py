"""NetHack and MiniHack as vector environments, stepped through NLE's own gymnasium classes.

Invariant: what an episode showed last (observation, message, figures) is from inside the game, and a step's caption holds
every message line shown during it, those that NLE skips past included. Any faster stepping must equal this, bit for bit.
"""

import functools
import importlib
import logging
import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from nle import nethack
from nle.env import NLE

from actors.environment import ArraySpec, EnvironmentSpec, EpisodeEnd, VectorStep, load_creator
from actors.hero_view import LAYERS, MAP_CELLS, MAP_HEIGHT, MAP_WIDTH, HeroView, make_maps
from actors.messages import MessageLog
from actors.nethack_figures import EpisodeFigures
from actors.nethack_tasks import register_tasks
from actors.seeding import SeedStream
from configs.schema import EnvConfig

logger = logging.getLogger(__name__)

OBSERVED = ("glyphs", "blstats", "message")
NEEDED = frozenset({*OBSERVED, "program_state", "internal"})
"""What NLE's own stepping and its tasks read."""
NO_LIMIT = 1 << 62
STOCK_MODULES = frozenset({"nle.env.base", "nle.env.tasks", "minihack.base", "actors.nethack_tasks"})
ESCAPE = 27
GAME_OVER = 0  # index into program_state
READING_LINE, WAITING_FOR_SPACE = 2, 3  # indices into internal


def register_environments(package: str) -> None:
    """Register the environments of `nle` (its own: by importing this module) or `minihack`; ImportError where it is missing."""
    register_tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # minihack imports setuptools' pkg_resources, which warns that it is deprecated
        importlib.import_module(package)


@functools.cache
def _warn_unseeded(env_id: str) -> None:
    logger.warning("%s refuses to be seeded: its episodes differ from run to run, whatever the seed of the run", env_id)


class Game:
    """One NLE environment whose engine writes into given buffers and is watched at each of its steps."""

    def __init__(self, env: NLE, env_id: str, screen: Mapping[str, np.ndarray]) -> None:
        """The arrays of `screen` are contiguous and always hold the current one: `blstats` [27] i64, `message` [256] u8, and maps
        (`glyphs` and others of `LAYERS`) [MAP_CELLS + 1], whose last cell stays as it is."""
        self.env, self._env_id = env, env_id
        self.step_limit = int(env._max_episode_steps)
        """The environment's own limit; NLE itself would report it as a termination, on an emptied screen."""
        env._max_episode_steps = NO_LIMIT
        # A won game is left as it stands, so that its last screen can be read; the next reset starts a new one anyway.
        env._quit_game = lambda observation, done: None
        self.has_goal = hasattr(type(env).StepStatus, "TASK_SUCCESSFUL")
        self.last_screen: dict[str, np.ndarray] | None = None
        """Copies of the arrays as the game showed them last, once it is over."""
        self._starting = False
        self._log = MessageLog()
        self._arrays, self._message = screen, screen["message"]
        engine = env.nethack
        self._engine = engine._pynethack
        buffers = engine._obs_buffers
        for name, array in screen.items():
            buffers[name] = array[:MAP_CELLS].reshape(MAP_HEIGHT, MAP_WIDTH) if name in LAYERS else array
        self._program_state, self._internal = buffers["program_state"], buffers["internal"]
        wanted = buffers if _reads_all(env) else {key: buffers[key] for key in NEEDED | screen.keys()}
        self._engine.set_buffers(**wanted)
        # MiniHack always makes NLE fill and copy every observation there is; what nobody reads becomes an empty array.
        self._screen = engine._obs = tuple(wanted.get(key, np.empty(0, np.uint8)) for key in env._observation_keys)
        self._engine_reset, engine.reset, engine.step = engine.reset, self._reset_engine, self._step_engine

    def reset(self, core: int, disp: int) -> bytes:
        """Start a game with these seeds and return its first raw caption."""
        self._log.start_episode()
        self.last_screen = None
        self._starting = True
        global_state = random.getstate()  # MiniHack draws some levels from Python's global generator
        try:
            random.seed(core)
            try:
                self.env.seed(core, disp, reseed=False)
            except RuntimeError:
                _warn_unseeded(self._env_id)
            self.env.reset()
        finally:
            random.setstate(global_state)
            self._starting = False
        return self._log.caption()

    def step(self, action: int) -> tuple[float, bool, int, bytes]:
        """Reward, whether NLE ended the episode, its end status, and the step's raw caption."""
        self._log.start_step()
        _, reward, done, _, info = self.env.step(action)
        return reward, done, int(info["end_status"]), self._log.caption()

    def success(self, status: int) -> bool:
        """Whether the episode that ended with this status reached its goal."""
        return status == type(self.env).StepStatus.TASK_SUCCESSFUL or getattr(self.env, "succeeded", False)

    def _reset_engine(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        screen = self._engine_reset(*args, **kwargs)
        self._watch()
        return screen

    def _step_engine(self, action: int) -> tuple[tuple[np.ndarray, ...], bool]:
        if self._starting and self._internal[READING_LINE] and not self._internal[WAITING_FOR_SPACE]:
            # A game may begin by asking what to call a thing picked up on the first square. NLE types a thousand spaces into
            # that question, gives up, and resets again, unseeded.
            action = ESCAPE
        self._engine.step(action)
        self._watch()
        return self._screen, self._engine.done()

    def _watch(self) -> None:
        """Log the message line and, once the game is over, keep the screen until the engine empties it."""
        message = self._message
        if self._program_state[GAME_OVER]:
            if not self._engine.in_normal_game():
                return
            if self.last_screen is None or message[0]:
                self.last_screen = {name: array.copy() for name, array in self._arrays.items()}
        else:
            self.last_screen = None  # a life may be saved after "You die..."
        if message[0] or self._log.prompt is not None:
            internal = self._internal
            text_prompt = bool(internal[READING_LINE]) and not internal[WAITING_FOR_SPACE]
            self._log.add(message.tobytes().partition(b"\0")[0], text_prompt)


def _reads_all(env: NLE) -> bool:
    """Whether the task may read more than NLE's own tasks do: a MiniHack reward manager, or an end or reward of its own."""
    kind = type(env)
    own = {method.__module__ for method in (kind._is_episode_end, kind._reward_fn, kind.step)}
    return getattr(env, "reward_manager", None) is not None or not own <= STOCK_MODULES


class NetHackEnvironment:
    """B games; observations: the window that `view` cuts out around the hero, `blstats` [27] f32, `message` [256] u8."""

    def __init__(self, spec: EnvSpec, config: EnvConfig, *, num_envs: int, seeds: SeedStream, view: HeroView) -> None:
        """Raises ValueError for options that the environment does not take."""
        if config.captioner != "message":
            raise ValueError(f"captions of {spec.id!r} are its message lines: env.captioner must be 'message', got {config.captioner!r}")
        self.num_envs = num_envs
        self._seeds, self._view = seeds, view
        layers = dict.fromkeys(("glyphs", *view.layers))  # NLE's tasks read the glyphs, whatever the policy does
        self._screens = make_maps(num_envs, tuple(layers))
        self._glyphs = self._screens["glyphs"][:, :MAP_CELLS]
        self._screens["blstats"] = self._blstats = np.zeros((num_envs, *nethack.BLSTATS_SHAPE), np.int64)
        self._screens["message"] = np.zeros((num_envs, *nethack.MESSAGE_SHAPE), np.uint8)
        self._games: list[Game] = []
        try:
            for i in range(num_envs):
                self._games.append(Game(_make_game(spec, config), spec.id, {name: array[i] for name, array in self._screens.items()}))
        except BaseException:
            self.close()
            raise
        self._step_limit = config.max_episode_steps or self._games[0].step_limit
        self._episodes = np.zeros(num_envs, np.int64)
        self._steps = np.zeros(num_envs, np.int64)
        self._figures = EpisodeFigures(num_envs)
        self._obs: dict[str, np.ndarray] = {}
        self.spec = EnvironmentSpec(
            observations={
                view.entry: view.spec,
                "blstats": ArraySpec(shape=nethack.BLSTATS_SHAPE, dtype=np.dtype(np.float32)),
                "message": ArraySpec(shape=nethack.MESSAGE_SHAPE, dtype=np.dtype(np.uint8)),
            },
            num_actions=int(self._games[0].env.action_space.n),
        )

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Start the next game everywhere."""
        captions = [self._start(i) for i in range(self.num_envs)]
        self._obs = self._observe(self._screens)
        return self._obs, captions

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None = None) -> VectorStep:
        """Take one action in each game."""
        outcomes = [game.step(action) for game, action in zip(self._games, actions.tolist(), strict=True)]
        rewards, dones, statuses, captions = zip(*outcomes, strict=True)
        self._steps += 1
        self._figures.update(self._glyphs, self._blstats, captions)
        ended_by_nle = np.array(dones, bool)
        # With the step limit out of reach NLE aborts only where NetHackChallenge sees no progress: no end of the task either.
        aborted = ended_by_nle & (np.array(statuses) < 0)
        terminated = ended_by_nle & ~aborted
        truncated = (aborted | (self._steps >= self._step_limit)) & ~terminated
        ends = [self._end(i, statuses[i]) for i in np.flatnonzero(terminated | truncated).tolist()]
        self._obs = self._observe(self._screens, out)
        return VectorStep(
            obs=self._obs,
            rewards=np.array(rewards, np.float32),
            terminated=terminated,
            truncated=truncated,
            captions=list(captions),
            ends=ends,
        )

    def state_dict(self) -> dict[str, Any]:
        """How many games each environment has started: NetHack cannot save the state of a running one for another engine."""
        return {"exact": False, "episodes": self._episodes.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `reset` starts the games after the saved ones."""
        self._episodes[:] = state["episodes"]

    def close(self) -> None:
        """End the engines and remove their temporary directories."""
        for game in self._games:
            game.env.close()

    def _start(self, i: int) -> bytes:
        episode = int(self._episodes[i])
        caption = self._games[i].reset(self._seeds.seed(i, episode, "core"), self._seeds.seed(i, episode, "disp"))
        self._episodes[i] += 1
        self._steps[i] = 0
        self._figures.start(i, self._glyphs[i], self._blstats[i])
        return caption

    def _end(self, i: int, status: int) -> EpisodeEnd:
        """Keep what the episode showed last, then start the next one."""
        game = self._games[i]
        if game.last_screen is not None:
            final_obs = self._observe({name: array[None] for name, array in game.last_screen.items()})
        elif self._blstats[i].any():
            final_obs = self._observe({name: array[i : i + 1] for name, array in self._screens.items()})
        else:  # the engine stopped within one of its steps: the step before showed the game last
            final_obs = {name: array[i : i + 1].copy() for name, array in self._obs.items()}
        info = self._figures.end(i, final_obs["blstats"][0])
        if game.has_goal:
            info["success"] = float(game.success(status))
        return EpisodeEnd(index=i, final_obs={name: array[0] for name, array in final_obs.items()}, reset_caption=self._start(i), info=info)

    def _observe(self, screens: Mapping[str, np.ndarray], out: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Observations of rows of raw screens, in `out` or new arrays."""
        blstats = screens["blstats"]
        if out is None:
            specs = self.spec.observations
            out = {name: np.empty((len(blstats), *spec.shape), spec.dtype) for name, spec in specs.items()}
        self._view.cut(screens, blstats[:, nethack.NLE_BL_X], blstats[:, nethack.NLE_BL_Y], out[self._view.entry])
        out["blstats"][:] = blstats
        out["message"][:] = screens["message"]
        return out


def _make_game(spec: EnvSpec, config: EnvConfig) -> NLE:
    """The bare environment, without gymnasium's wrappers: NLE ignores seeds and limits that come through them."""
    for key, instead in (("max_episode_steps", "env.max_episode_steps"), ("observation_keys", "nothing: they are fixed")):
        if key in config.options:
            raise ValueError(f"env.options has {key!r}, which the environment of a run sets itself; use {instead}")
    creator = load_creator(spec)
    # Without fix_moon_phase a seeded game would depend on the date and the hour at which it is played.
    arguments = {"observation_keys": OBSERVED, "fix_moon_phase": True, **spec.kwargs, **config.options}
    try:
        return creator(**arguments)
    except TypeError as error:
        raise ValueError(f"environment {spec.id!r} does not take env.options {config.options}: {error}") from None
