"""Plays a recording back in the terminal, with keys.

Invariant: however it ends, the terminal is left as it was found.
"""

import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator

from cluster.replay.playback import HELP, Playback
from cluster.replay.recording import Recording
from cluster.replay.view import BRIGHT, GREY, Line, Totals, escaped, redrawn, title, view

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[0m\x1b[?25h\x1b[?1049l"
"""The terminal's second screen, with the cursor hidden; and back."""
SEQUENCES = {
    "[C": "right",
    "[D": "left",
    "[A": "up",
    "[B": "down",
    "[H": "home",
    "[F": "end",
    "[1~": "home",
    "[4~": "end",
    "[5~": "up",
    "[6~": "down",
}
NAMED = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\x1b": "escape", "\x04": "q"}
FRAME_S = 1 / 30
"""Time between two drawings; at higher speeds some steps are not drawn."""
BAR_ROWS = 2


def is_possible() -> bool:
    """Whether standard input and output are a terminal that can be drawn on."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def play_back(recording: Recording, speed: float, begin: int = 0) -> None:
    """From moment `begin` on, until the user quits."""
    last = len(recording.moments) - 1
    rewarded = tuple(moment.step for moment in recording.moments if moment.reward or moment.intrinsic)
    playback, totals = Playback(last=last, rewarded=rewarded, speed=speed, at=begin), Totals.of(recording)
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)
        sys.stdout.write(ENTER)
        _run(recording, playback, totals, number)
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _run(recording: Recording, playback: Playback, totals: Totals, number: int) -> None:
    shown: list[str] | None = None
    size, then = None, time.monotonic()
    while not playback.is_over:
        if (now_size := shutil.get_terminal_size()) != size:
            size, shown = now_size, None
        lines = drawing(recording, playback, totals, *size)
        if lines != shown:
            sys.stdout.write(redrawn(lines, shown))
            sys.stdout.flush()
            shown = lines
        if select.select([number], [], [], FRAME_S)[0]:
            data = os.read(number, 1024)
            if not data:  # the terminal is gone
                return
            for key in keys(data.decode("utf-8", "replace")):
                playback.press(key)
        now = time.monotonic()
        playback.pass_time(now - then)
        then = now


def drawing(recording: Recording, playback: Playback, totals: Totals, columns: int, rows: int) -> list[str]:
    """The lines of the whole terminal: title, moment (or the help), and the bar with the state."""
    room = max(0, rows - BAR_ROWS)
    if playback.shows_help:
        body = [escaped(Line(text), columns) for text in ("", *HELP)][:room]
    else:
        body = view(recording, playback.moment, totals, columns, room)
    state = "plays" if playback.is_running else "the end" if playback.moment == playback.last else "paused"
    bar = f"{state}, {playback.speed:g} steps/s   space pause, left right step, + - speed, g jump, ? help, q quit"
    if playback.typed is not None:
        bar = f"to step (0 to {playback.last}): {playback.typed}_"
    return [escaped(Line(title(recording), GREY), columns), *body, escaped(Line(bar, BRIGHT), columns)]


def keys(text: str) -> Iterator[str]:
    """The keys that a terminal sent, by their names in `Playback.press`."""
    while text:
        if text[0] == "\x1b":
            after = text[1:].replace("O", "[", 1) if text[1:2] == "O" else text[1:]
            known = next((sequence for sequence in SEQUENCES if after.startswith(sequence)), None)
            if known is not None:
                yield SEQUENCES[known]
                text = text[1 + len(known) :]
                continue
            if after.startswith("["):  # a key that has no meaning here
                end = next((i for i, char in enumerate(after[1:], 2) if "@" <= char <= "~"), len(after))
                text = text[1 + end :]
                continue
        yield NAMED.get(text[0], text[0])
        text = text[1:]
