"""One game of NetHack or MiniHack: NLE's own environment, whose engine writes into given arrays and is observed at each
step.

Invariant: an episode's last screen stays readable after its end, and a step's caption holds every message line shown
during it, those that NLE skips included. Playing through NLE's `step` is the specification: faster stepping is
bit-identical to it.
"""

import functools
import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from nle import nethack
from nle.env import NLE

from actors.environments.errors import EnvironmentFailure
from actors.environments.gymnasium_vector import refuse_making
from actors.environments.lookup import load_creator
from actors.environments.nethack.crop import LAYERS, MAP_CELLS, MAP_HEIGHT, MAP_WIDTH, make_maps
from actors.environments.nethack.messages import MessageLog
from actors.environments.nethack.shared_code import engine_pages
from actors.environments.nethack.tasks import ESCAPE, GAME_OVER, READING_LINE, WAITING_FOR_SPACE
from actors.environments.protocol import step_result
from actors.environments.wrappers import NO_LIMIT, innermost, lengthen, lowest, lowest_time_limit, strip
from configs.schema import EnvConfig

logger = logging.getLogger(__name__)

OBSERVED = ("glyphs", "blstats", "message")
INVENTORY: Mapping[str, int] = {"inv_letters": 128, "inv_oclasses": 19}
"""The inventory's entries, one value per slot, and their numbers of values; an empty slot has the last class."""
TERMINAL = ("tty_chars", "tty_colors", "tty_cursor")
"""The terminal as a person sees it."""
OVERVIEW = frozenset({int(nethack.Command.OVERVIEW), int(nethack.Command.EXTCMD)})
"""The keys that lead to the overview of the dungeon."""
STOCK_MODULES = frozenset({"nle.env.base", "nle.env.tasks", "minihack.base", "actors.environments.nethack.tasks"})
ABORTED, DEATH = -1, 1  # end statuses
LEVEL = "mylevel.lev"
"""The level that MiniHack compiles and plays."""


def make_screens(num_envs: int, layers: tuple[str, ...], others: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Empty arrays for B engines to write into: maps [B, MAP_CELLS + 1], `program_state` [B, 6] i32, `internal` [B, 9]
    i32, and the `others`: `blstats` [B, 27] i64, `message` [B, 256] u8, those of INVENTORY [B, 55] u8, of TERMINAL."""
    arrays = make_maps(num_envs, layers)
    for key in ("program_state", "internal", *others):
        description = nethack.OBSERVATION_DESC[key]
        arrays[key] = np.zeros((num_envs, *description["shape"]), description["dtype"])
    return arrays


class Game:
    """One NLE environment whose engine writes into given buffers and is observed at each of its steps."""

    def __init__(self, spec: EnvSpec, config: EnvConfig, arrays: Mapping[str, np.ndarray]) -> None:
        """`arrays`: one row of each of `make_screens`, contiguous; the last cell of a map stays unchanged. ValueError
        for options that the environment does not take, and for what it raises."""
        played, observes_more = _make(spec, config)
        env = innermost(played)
        _refuse_without_level(env, spec.id)
        self.env, self._env_id = env, spec.id
        inside = lowest(env._max_episode_steps)
        self.step_limit = lowest(inside, spec.max_episode_steps, lowest_time_limit(played))
        """The environment's own limit; NLE itself would report it as a termination, with an empty screen."""
        if config.max_episode_steps > self.step_limit:
            lengthen(played, config.max_episode_steps)
            inside = NO_LIMIT
        self._limit_inside = inside or NO_LIMIT  # a wrapper's step may be several of the game's
        self.played = strip(played)  # what is stepped: the environment, or wrappers around it that change something
        env._max_episode_steps = NO_LIMIT
        # A won game is not quit, so that its last screen can be read; the next reset starts a new one anyway.
        env._quit_game = lambda observation, done: None
        self.has_goal = hasattr(type(env).StepStatus, "TASK_SUCCESSFUL")
        self.last_screen: dict[str, np.ndarray] | None = None
        """Copies of the arrays at the game's last screen, once it is over."""
        self.log = MessageLog()
        self._starting = False
        self._arrays, self._message = arrays, arrays["message"]
        engine = env.nethack
        self.engine = engine._pynethack
        buffers = engine._obs_buffers
        for name, array in arrays.items():
            buffers[name] = array[:MAP_CELLS].reshape(MAP_HEIGHT, MAP_WIDTH) if name in LAYERS else array
        self._program_state, self._internal = buffers["program_state"], buffers["internal"]
        # NLE's own stepping and its tasks read no arrays but those of `make_screens`.
        reads_all = observes_more or _reads_all(env)
        wanted = buffers if reads_all else {key: buffers[key] for key in arrays}
        self.engine.set_buffers(**wanted)
        # MiniHack makes NLE fill and copy every observation; those that nothing reads become empty arrays.
        self.screen = engine._obs = tuple(wanted.get(key, np.empty(0, np.uint8)) for key in env._observation_keys)
        """The engine's arrays in the order in which NLE's methods expect them."""
        self._engine_reset, engine.reset, engine.step = engine.reset, self._reset_engine, self._step_engine
        draws = config.stepping == "gymnasium" or reads_all or self.is_wrapped or _shows_terminal(env, wanted)
        self._pages = engine_pages(draws) if config.share_engine_code else None
        if self._pages is not None:
            self._pages.prepare(engine.dlpath)

    @property
    def is_wrapped(self) -> bool:
        """Whether a wrapper that changes something surrounds the game."""
        return self.played is not self.env

    def reset(self, core: int, disp: int) -> bytes:
        """Start a game with these seeds; returns its first raw caption."""
        self.log.start_episode()
        self.last_screen = None
        self._starting = True
        global_state = random.getstate()  # MiniHack draws some levels from Python's global generator
        try:
            random.seed(core)
            try:
                self.env.seed(core, disp, reseed=False)
            except RuntimeError:
                _warn_unseeded(self._env_id)
            if self.is_wrapped:
                self.played.reset(seed=core % 2**31)  # wrappers may draw something
                if innermost(self.played) is not self.env:
                    what = f"environment {self._env_id!r} put another NetHack game in the place of its own in reset"
                    raise EnvironmentFailure(f"{what}; make the new game in the first reset already, or never")
            else:
                self.env.reset()
        finally:
            random.setstate(global_state)
            self._starting = False
        return self.log.caption()

    def step(self, action: int) -> tuple[float, int, bytes]:
        """Reward, end status (0: the episode goes on), and the step's raw caption."""
        self.log.start_step()
        given = self.played.step(action)
        _, reward, terminated, truncated, info = step_result(given, self._env_id)
        status = int(info.get("end_status", 0))
        if not status and (terminated or truncated):  # a wrapper ended the episode
            status = ABORTED if truncated else DEATH
        if not status and self.env._steps >= self._limit_inside:
            status = ABORTED
        return reward, status, self.log.caption()

    def success(self, status: int) -> bool:
        """Whether the episode that ended with this status reached its goal."""
        return status == type(self.env).StepStatus.TASK_SUCCESSFUL or getattr(self.env, "succeeded", False)

    def watch(self) -> None:
        """Log the message line and, once the game is over, save the screen before the engine empties it."""
        message = self._message
        if self._program_state[GAME_OVER]:
            if not self.engine.in_normal_game():
                return
            if self.last_screen is None or message[0]:
                self.last_screen = {name: array.copy() for name, array in self._arrays.items()}
        else:
            self.last_screen = None  # a life may be saved after "You die..."
        if message[0] or self.log.prompt is not None:
            internal = self._internal
            text_prompt = bool(internal[READING_LINE]) and not internal[WAITING_FOR_SPACE]
            self.log.add(message.tobytes().partition(b"\0")[0], text_prompt)

    def _reset_engine(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        screen = self._engine_reset(*args, **kwargs)
        if self._pages is not None:
            self._pages.share(self.env.nethack.dlpath)
        self.watch()
        return screen

    def _step_engine(self, action: int) -> tuple[tuple[np.ndarray, ...], bool]:
        if self._starting and self._internal[READING_LINE] and not self._internal[WAITING_FOR_SPACE]:
            # A game may begin by asking for the name of a thing picked up on the first square. NLE types a thousand
            # spaces into that prompt, gives up, and resets again, unseeded.
            action = ESCAPE
        self.engine.step(action)
        self.watch()
        return self.screen, self.engine.done()


class GymnasiumStepping:
    """Steps each game through its environment's own `step`, one after the other."""

    def __init__(self, games: list[Game]) -> None:
        self._games = games

    def start(self, i: int, core: int, disp: int) -> bytes:
        """Start game `i` with these seeds; returns its first raw caption."""
        return self._games[i].reset(core, disp)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
        """One action [B] i64 in each game: rewards [B] f32, end statuses [B] i64 (0: goes on), raw captions."""
        rewards, statuses, captions = zip(*map(Game.step, self._games, actions.tolist()), strict=True)
        return np.array(rewards, np.float32), np.array(statuses, np.int64), list(captions)


def _make(spec: EnvSpec, config: EnvConfig) -> tuple[Any, bool]:
    """NLE's environment, or wrappers around it, but not gymnasium's own: NLE ignores seeds and limits that come through
    them; and whether it was made to observe more than `OBSERVED`."""
    for key, instead in (("max_episode_steps", "use env.max_episode_steps"), ("observation_keys", "remove it")):
        if key in config.options:
            raise ValueError(f"env.options has {key!r}, which a run sets itself; {instead}")
    creator = load_creator(spec)
    arguments = {**spec.kwargs, **config.options}
    try:
        env, observes_more = _create(creator, arguments)
        for wrapper in spec.additional_wrappers:  # which may read more observations
            env = load_env_creator(wrapper.entry_point)(env=env, **(wrapper.kwargs or {}))
    except BaseException as error:
        refuse_making(spec.id, config.options, error)
    return env, observes_more or bool(spec.additional_wrappers)


def _create(creator: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[Any, bool]:
    """What a class or function makes, with a fixed moon phase, and whether it may observe more than `OBSERVED`: without
    a fixed phase a seeded game would depend on the date and the hour at which it is played."""
    if isinstance(creator, type) and issubclass(creator, NLE):
        ours = {"observation_keys": OBSERVED, "fix_moon_phase": True}
        try:
            return creator(**{**ours, **arguments}), False
        except TypeError as error:  # a class of the user's may not take these, or give them itself
            if not any(name in str(error) for name in ours):
                raise
    with _fixed_moon_phase():
        return creator(**arguments), True


def _refuse_without_level(env: NLE, env_id: str) -> None:
    """EnvironmentFailure if MiniHack has not compiled a level: the game would take place in NetHack's own dungeon."""
    if hasattr(env, "_patch_nhdat") and not Path(env.nethack._vardir, "lib", LEVEL).exists():
        what = f"environment {env_id!r} has no level: its des_file is missing, does not compile, or names another level"
        raise EnvironmentFailure(f"{what} than mylevel (MAZE: \"mylevel\",' '); MiniHack has printed what it found")


@contextmanager
def _fixed_moon_phase() -> Iterator[None]:
    """Games made within it have a fixed moon phase, whatever function makes them."""
    make = nethack.Nethack.__init__

    @functools.wraps(make)
    def with_fixed_phase(*args: Any, **kwargs: Any) -> None:
        make(*args, **{**kwargs, "fix_moon_phase": True})

    nethack.Nethack.__init__ = with_fixed_phase
    try:
        yield
    finally:
        nethack.Nethack.__init__ = make


def _reads_all(env: NLE) -> bool:
    """Whether the task may read more than NLE's own tasks do: a MiniHack reward manager, or a custom end or reward."""
    kind = type(env)
    own = {method.__module__ for method in (kind._is_episode_end, kind._reward_fn, kind.step)}
    return getattr(env, "reward_manager", None) is not None or not own <= STOCK_MODULES


def _shows_terminal(env: NLE, wanted: Collection[str]) -> bool:
    """Whether anybody sees the terminal, or the overview of the dungeon: by its command, by typing its name, or on the
    screens after death, which NLE passes unless all modes are allowed."""
    keys = env.actions[: getattr(env.action_space, "n", None)]
    is_recorded = env.nethack._ttyrec is not None
    return is_recorded or env._allow_all_modes or not OVERVIEW.isdisjoint(keys) or not {*TERMINAL}.isdisjoint(wanted)


@functools.cache
def _warn_unseeded(env_id: str) -> None:
    logger.warning("%s refuses to be seeded: its episodes differ from run to run, whatever the seed of the run", env_id)
