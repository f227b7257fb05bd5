"""One moment as lines of coloured text, and as the escape sequences that a terminal shows.

Invariant: every line of a view fits its width, in columns of a terminal.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rich.cells import set_cell_size

from cluster.replay.recording import Moment, Recording

CLEAR, HOME, TO_LINE_END, PLAIN = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[0m"
GREY, BRIGHT, GREEN, RED, YELLOW = 7, 15, 10, 9, 11
PANEL_ROWS = 5
SCREEN_COLUMNS, LEAST_PANEL_COLUMNS = 80, 30
GAP = "  "
HALF_BLOCK = "▀"


class Line(NamedTuple):
    """A line of text, with one colour (0 to 15) or one per character."""

    text: str
    colours: np.ndarray | int = GREY


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over an episode up to each of its moments."""

    reward: np.ndarray
    intrinsic: np.ndarray

    @staticmethod
    def of(recording: Recording) -> "Totals":
        """The sums of all moments."""
        return Totals(
            np.cumsum([moment.reward for moment in recording.moments]),
            np.cumsum([moment.intrinsic for moment in recording.moments]),
        )


def title(recording: Recording) -> str:
    """The game in one line: environment, player, place, and metrics."""
    metrics = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in recording.metrics.items())
    _, env, episode = recording.game
    return f"{recording.environment}, {recording.player}, environment {env}, episode {episode}: {metrics}"


def panel(recording: Recording, t: int, totals: Totals, columns: int, rows: int = PANEL_ROWS) -> list[Line]:
    """`rows` lines about moment `t`; those longer than `columns` go on in the next."""
    moment, last = recording.moments[t], len(recording.moments) - 1
    action = "reset" if moment.action is None else moment.action
    value = "" if moment.value is None else f"   value {moment.value:.3g}"
    judge = "" if moment.probability is None else f"   judge {moment.probability:.2f}"
    sums = totals.reward[t], totals.intrinsic[t]
    lines = [
        Line(f"step {moment.step:,} of {last:,}   action {action}", BRIGHT),
        Line(f"reward {moment.reward:+.3g} (sum {sums[0]:.4g}){value}", _sign_colour(moment.reward)),
        Line(f"intrinsic {moment.intrinsic:+.3g} (sum {sums[1]:.4g}){judge}", _sign_colour(moment.intrinsic)),
        Line(moment.caption or "(no caption)", BRIGHT if moment.caption else GREY),
    ]
    wrapped = [Line(text[i : i + columns], colour) for text, colour in lines for i in range(0, len(text), columns)]
    return [*wrapped, *[Line("")] * rows][:rows]


def screen(moment: Moment) -> list[Line]:
    """The lines of a game's terminal; none for games that have no terminal."""
    if moment.screen is None or moment.colours is None:
        return []
    return [Line(text, colours) for text, colours in zip(moment.screen, moment.colours, strict=True)]


def view(recording: Recording, t: int, totals: Totals, columns: int, rows: int) -> list[str]:
    """At most `rows` lines of escape sequences: the terminal or the picture, and the panel below it, or beside it if
    there is room for both only there."""
    moment, room, beside = recording.moments[t], max(0, rows - PANEL_ROWS), columns - SCREEN_COLUMNS - len(GAP)
    lines = screen(moment)
    if len(lines) > room and beside >= LEAST_PANEL_COLUMNS:
        about = panel(recording, t, totals, beside, len(lines))
        both = zip(lines, about, strict=True)
        return [escaped(left, SCREEN_COLUMNS) + GAP + escaped(right, beside) for left, right in both][:rows]
    if moment.picture is not None:
        shown = half_blocks(moment.picture, columns, room)
    else:
        shown = [escaped(line, columns) for line in _fitting(lines, room)]
    return [*shown, *(escaped(line, columns) for line in panel(recording, t, totals, columns))][:rows]


def _fitting(lines: list[Line], room: int) -> list[Line]:
    """`room` lines of a terminal: without its empty ones first, then without those above the two status lines."""
    surplus = max(0, len(lines) - room)
    empty = [i for i, line in enumerate(lines) if not line.text.strip()]
    others = [i for i in reversed(range(len(lines) - 2)) if i not in empty]
    dropped = {*[*reversed(empty), *others][:surplus]}
    return [line for i, line in enumerate(lines) if i not in dropped][:room]


def escaped(line: Line, columns: int, sequence: Callable[[int], str] | None = None) -> str:
    """The line in exactly `columns` columns; `sequence` gives the escape sequence of a colour (None: for people)."""
    sequence = sequence or _sequence
    cut = Line(set_cell_size(line.text, columns), line.colours)
    return "".join(f"{sequence(colour)}{cut.text[start:end]}" for start, end, colour in runs(cut)) + PLAIN


def runs(line: Line) -> Iterator[tuple[int, int, int]]:
    """Start, end and colour of the parts of a line that have one colour; the last one goes on to its end."""
    text, colours = line
    if isinstance(colours, int):
        yield 0, len(text), colours
        return
    colours = colours[: len(text)]
    if not text:
        return
    ends = [*(np.flatnonzero(colours[1:] != colours[:-1]) + 1).tolist(), len(text)]
    for start, end in zip([0, *ends], ends, strict=False):
        yield start, end, int(colours[start])


def half_blocks(picture: np.ndarray, columns: int, rows: int) -> list[str]:
    """A picture [height, width, 3] u8 as at most `rows` lines of characters that show two pixels each, one above the
    other."""
    if rows < 1:
        return []
    height, width = picture.shape[:2]
    scale = min(columns / width, 2 * rows / height)
    high, wide = max(2, int(height * scale) // 2 * 2), max(1, int(width * scale))
    small = picture[np.arange(high) * height // high][:, np.arange(wide) * width // wide].tolist()
    lines = []
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        cells = [
            f"\x1b[38;2;{r};{g};{b};48;2;{x};{y};{z}m{HALF_BLOCK}"
            for (r, g, b), (x, y, z) in zip(upper, lower, strict=True)
        ]
        lines.append("".join(cells) + PLAIN)
    return lines


def redrawn(lines: Sequence[str], before: Sequence[str] | None) -> str:
    """The escape sequences that turn the lines `before` into `lines`; None: whatever is on the terminal."""
    if before is None:
        return CLEAR + "".join(f"\x1b[{row};1H{line}" for row, line in enumerate(lines, 1))
    height = max(len(lines), len(before))
    new, old = ([*some, *[""] * (height - len(some))] for some in (lines, before))
    changed = [(row, line) for row, (line, was) in enumerate(zip(new, old, strict=True), 1) if line != was]
    return "".join(f"\x1b[{row};1H{line}{TO_LINE_END}" for row, line in changed)


def _sign_colour(value: float) -> int:
    return GREEN if value > 0 else RED if value < 0 else GREY


@functools.cache
def _sequence(colour: int) -> str:
    """Of colours 0 to 15; black is shown as dark grey, and blue as bright blue, so that both can be read on black."""
    colour = {0: 8, 4: 12}.get(colour, colour)
    return f"\x1b[0;{30 + colour}m" if colour < 8 else f"\x1b[0;{82 + colour}m"
