"""A NetHack recording as a ttyrec, version 3, as NLE itself writes them and `nle.dataset` reads them.

Invariant: one frame per moment: the terminal, then the key of the action taken there (0 after the last).
"""

import re
import struct
from collections.abc import Iterator, Sequence

from actors.environments.nethack.action_names import key_of
from cluster.replay.recording import Moment, Recording
from cluster.replay.view import CLEAR, HOME, PLAIN, Line, escaped

OUTPUT, INPUT, SCORE = 0, 1, 2  # channels
IN_STATUS_LINE = re.compile(r"\bS:(\d+)")


def ttyrec(recording: Recording, moments: Sequence[int], speed: float) -> Iterator[bytes]:
    """The file's parts, uncompressed, with `moments` (numbers), each of which has a screen, at `speed` per second."""
    for number, t in enumerate(moments):
        moment = recording.moments[t]
        following = recording.moments[t + 1].action if t + 1 < len(recording.moments) else None
        seconds = number / speed
        yield _part(seconds, OUTPUT, _drawn(moment))
        yield _part(seconds, SCORE, struct.pack("<i", _score(moment)))
        yield _part(seconds, INPUT, bytes([key_of(following or "") % 256]))
    # NLE's reader gives a frame when it has read what comes after its key.
    yield _part(len(moments) / speed, SCORE, struct.pack("<i", _score(recording.moments[moments[-1]])))


def _part(seconds: float, channel: int, data: bytes) -> bytes:
    whole = int(seconds)
    return struct.pack("<iiiB", whole, int((seconds - whole) * 1e6), len(data), channel) + data


def _drawn(moment: Moment) -> bytes:
    assert moment.screen is not None
    assert moment.colours is not None
    lines = zip(moment.screen, moment.colours, strict=True)
    drawn = ""
    for row, (text, colours) in enumerate(lines, 1):
        # A character in the last column of the last row would scroll the terminal.
        width = min(len(text.rstrip()), len(text) - (row == len(moment.screen)))
        drawn += f"\x1b[{row};1H{escaped(Line(text, colours), width, _sequence)}"
    row, column = moment.cursor or (0, 0)
    return f"{PLAIN}{CLEAR}{HOME}{drawn}\x1b[{row + 1};{column + 1}H".encode("latin-1", "replace")


def _sequence(colour: int) -> str:
    """As NetHack writes it: bright colours as bold ones."""
    return f"\x1b[0;{30 + colour}m" if colour < 8 else f"\x1b[0;1;{22 + colour}m"


def _score(moment: Moment) -> int:
    """NetHack's own score, where the status line shows it."""
    found = IN_STATUS_LINE.search("".join((moment.screen or ())[-2:]))
    return int(found[1]) if found else 0
