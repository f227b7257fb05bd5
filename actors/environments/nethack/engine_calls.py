"""Gives B engines a key each: in one C call where NLE is a known build, else through NLE's own objects.

Invariant: both do the same. The C call reaches into NLE's objects, so it is used only where the build of NLE is known,
the engine's pointers are those of our arrays, and the first reset of each game has moved every field that is read.
"""

import ctypes
import functools
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from nle import _pynethack
from nle.env.base import SKIP_EXCEPTIONS

from actors.environments.nethack.crop import MAP_CELLS
from actors.environments.nethack.game import Game
from actors.environments.nethack.native import address, library
from actors.environments.nethack.tasks import ASKING, GAME_OVER, WAITING_FOR_SPACE

logger = logging.getLogger(__name__)

KNOWN_BUILDS = {
    "acbfd5f9d60625a8296139b0d23118e8df5d516937835f9848df1df3435338f2": "nle 1.3.0, Python 3.11, x86-64",
    "ea978749a161590737c47b8e914669f278dac16e0ae35c114fc0ee9c2ad2d013": "nle 1.3.0, Python 3.12, x86-64",
    "94298bfed3a262c1ece4d5e4f200a22dd73f03659fd1dacafd7d40e7a06ffb1d": "nle 1.3.0, Python 3.13, x86-64",
}
"""SHA-256 of the extension modules whose objects have the layout below, from the wheels of PyPI."""
POISON = {1: 1, 2: 0x5555, 4: 0x55555555, 8: 0x5555555555555555}
"""By the bytes of a field: what it holds before a game's first reset, and never at a game's start."""
MESSAGE_BYTES, MAX_EARLIER = 256, 8  # as in native.c
SLOWER = "NetHack's engines are called through NLE's objects, which is slower than by one C call"
READ = ("glyphs", "blstats", "message", "program_state", "internal")


class EngineCalls:
    """One call of NLE's object per engine and question."""

    def __init__(self, games: list[Game], screens: dict[str, np.ndarray]) -> None:
        """`screens` are the arrays [B, ...] whose rows the engines write."""
        self._games, self._screens = games, screens
        self._press = [game.engine.step for game in games]
        self._is_done = [game.engine.done for game in games]
        self._is_playing = [game.engine.in_normal_game for game in games]
        self._prompts = screens["internal"][:, ASKING : WAITING_FOR_SPACE + 1]
        self._game_over = screens["program_state"][:, GAME_OVER]
        self.done, self.playing, self.busy = (np.zeros(len(games), bool) for _ in range(3))
        """[B] after the last step: the engine has ended; it is in a normal game; more than the move has to be looked
        at, because a prompt is open or the game is over."""
        self.num_earlier = np.zeros(len(games), np.uint8)
        """[B]: the prompts that were passed in the last step already, each with a message line of its own."""
        self.attended = np.zeros(len(games), bool)
        """[B]: games that are busy in any case, and none of whose prompts may be passed."""

    def step(self, keys: np.ndarray) -> None:
        """Give each engine its key, `keys` [B] i64."""
        for press, key in zip(self._press, keys.tolist(), strict=True):
            press(key)
        self.done[:] = [is_done() for is_done in self._is_done]
        self.playing[:] = [is_playing() for is_playing in self._is_playing]
        np.not_equal(np.bitwise_or.reduce(self._prompts, axis=1) | self._game_over, 0, out=self.busy)
        self.busy |= self.attended

    def earlier(self, i: int) -> list[bytes]:
        """The message lines at which prompts of game `i` were passed in the last step."""
        return []

    def note(self, i: int, done: bool) -> None:
        """Game `i` has been stepped further by its task, which found it `done` or not."""
        self.done[i], self.playing[i] = done, self._is_playing[i]()

    def before_start(self, i: int) -> None:
        """Game `i` is about to be reset."""

    def after_start(self, i: int) -> "EngineCalls":
        """Game `i` has been reset: what makes the next steps."""
        return self


class NativeCalls(EngineCalls):
    """One C call for all engines."""

    def __init__(
        self, games: list[Game], screens: dict[str, np.ndarray], passes_prompts: bool, functions: ctypes.PyDLL
    ) -> None:
        """ValueError, with the reason, where the layout is not the expected one."""
        super().__init__(games, screens)
        self._passes_prompts = passes_prompts
        if (obstacle := unknown_build()) is not None:
            raise ValueError(obstacle)
        self._unproven = set(range(len(games)))
        self._objects = np.array([_find_object(game.engine) for game in games], np.uint64)
        for i, place in enumerate(self._objects.tolist()):
            arrays = _Object.from_address(place).arrays
            for name in READ:
                if arrays[_ARRAYS[name]] != address(screens[name][i]):
                    raise ValueError(f"NLE's object does not hold the address of {name} where it should")
        self._earlier = np.zeros((len(games), MAX_EARLIER), f"S{MESSAGE_BYTES}")
        self._step_games, self._batch = functions.step_games, self._describe()

    def step(self, keys: np.ndarray) -> None:
        """See `EngineCalls`."""
        if len(keys) != len(self._press):
            raise ValueError(f"got {len(keys)} actions for {len(self._press)} games")
        stepped = self._step_games(ctypes.byref(self._batch), address(keys))
        if stepped < len(self._press):
            self._press[stepped](int(keys[stepped]))  # raises NLE's own error
            raise RuntimeError(f"the engine of game {stepped} could not be stepped")

    def earlier(self, i: int) -> list[bytes]:
        """See `EngineCalls`."""
        return self._earlier[i, : self.num_earlier[i]].tolist()

    def _describe(self) -> "_Batch":
        env, screens = self._games[0].env, self._screens
        left = [b""] if env._allow_all_yn_questions else [*SKIP_EXCEPTIONS]
        arrays = (self.done, self.playing, self.busy, self.num_earlier, self._earlier)
        return _Batch(
            len(self._games),
            address(self._objects),
            *(address(screens[name]) for name in ("internal", "program_state", "message")),
            address(self.attended),
            (ctypes.c_char_p * len(left))(*left),
            len(left),
            self._passes_prompts,
            *map(address, arrays),
        )

    def before_start(self, i: int) -> None:
        """See `EngineCalls`."""
        if i in self._unproven:
            for name in READ:
                row = self._read(name, i)
                row[:] = POISON[row.itemsize]

    def after_start(self, i: int) -> EngineCalls:
        """See `EngineCalls`."""
        if i not in self._unproven:
            return self
        self._unproven.remove(i)
        found = []
        for name in READ:
            row = self._read(name, i)
            if len(unmoved := np.flatnonzero(row == POISON[row.itemsize])):
                found.append(f"field {unmoved[0]} of {name} never moves")
                row[unmoved] = 0
        if _Object.from_address(int(self._objects[i])).path() != self._games[i].env.nethack.dlpath:
            found.append("NLE's object does not hold the engine's path where it should")
        if not found:
            return self
        _say(f"{SLOWER}: {found[0]}")
        calls = EngineCalls(self._games, self._screens)
        calls.attended = self.attended
        return calls

    def _read(self, name: str, i: int) -> np.ndarray:
        row = self._screens[name][i]
        return row[:MAP_CELLS] if name == "glyphs" else row


def make_calls(games: list[Game], screens: dict[str, np.ndarray], passes_prompts: bool) -> EngineCalls:
    """The C call where it can be used, else NLE's objects, with one line that says why. `passes_prompts`: the step may
    begin with what NLE's own `_perform_known_steps` begins with: a space at each `--More--`."""
    functions = library()
    if functions is None:
        return EngineCalls(games, screens)
    try:
        calls = NativeCalls(games, screens, passes_prompts, functions)
    except ValueError as error:
        _say(f"{SLOWER}: {error}")
        return EngineCalls(games, screens)
    _say("NetHack's engines are stepped by one C call")
    return calls


@functools.cache
def _say(line: str) -> None:
    """Log a line once per process."""
    logger.info(line)


@functools.cache
def unknown_build() -> str | None:
    """Why this process's NLE is not one of KNOWN_BUILDS; None if it is."""
    file = Path(_pynethack.__file__)
    if hashlib.sha256(file.read_bytes()).hexdigest() in KNOWN_BUILDS:
        return None
    return f"{file} is another build than those of NLE 1.3.0's wheels for x86-64"


def _find_object(engine: Any) -> int:
    """The address of the C++ object that belongs to one of NLE's engines: the first pointer after Python's header."""
    return ctypes.c_size_t.from_address(id(engine) + object.__basicsize__).value


class _Loader(ctypes.Structure):
    """NLE's record of a loaded engine; as in native.c, like the next."""

    _fields_ = (("path", ctypes.c_char * 1024),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("num_games", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("games", "internal", "program_state", "messages", "attended")),
        ("left", ctypes.POINTER(ctypes.c_char_p)),
        ("num_left", ctypes.c_int64),
        ("passes_prompts", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("done", "playing", "busy", "num_earlier", "earlier")),
    )


_NAMES = ("glyphs", "chars", "colors", "specials", "blstats", "message", "program_state", "internal")
_ARRAYS = {name: i for i, name in enumerate(_NAMES)}


class _Object(ctypes.Structure):
    _fields_ = (
        ("reserved", ctypes.c_void_p),
        ("action", ctypes.c_int32),
        ("done", ctypes.c_int32),
        ("in_normal_game", ctypes.c_int8),
        ("how_done", ctypes.c_int32),
        ("arrays", ctypes.c_size_t * 20),
        ("loader", ctypes.POINTER(_Loader)),
    )

    def path(self) -> str:
        """The engine's path, as NLE's loader knows it; empty before the first reset."""
        return self.loader.contents.path.decode() if self.loader else ""
