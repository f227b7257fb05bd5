"""A recording as an asciicast, version 2, which asciinema plays and web pages embed.

Invariant: a file of JSON lines: a header, then one event per moment that holds only the lines which have changed.
"""

import json
from collections.abc import Iterator, Sequence

from cluster.replay.recording import Recording
from cluster.replay.view import HOME, PANEL_ROWS, Line, Totals, escaped, redrawn, title, view

COLUMNS, SCREEN_ROWS = 80, 24


def asciicast(recording: Recording, moments: Sequence[int], speed: float) -> Iterator[str]:
    """The file's lines, with `moments` (numbers) at `speed` per second."""
    totals = Totals.of(recording)
    has_view = recording.moments[0].screen is not None or recording.moments[0].picture is not None
    rows = 1 + (SCREEN_ROWS if has_view else 0) + PANEL_ROWS
    header = {"version": 2, "width": COLUMNS, "height": rows, "title": title(recording)}
    yield json.dumps({**header, "env": {"TERM": "xterm-256color"}})
    shown: list[str] | None = None
    for number, t in enumerate(moments):
        head = escaped(Line(title(recording)), COLUMNS)
        lines = [head, *view(recording, t, totals, COLUMNS, rows - 1)]
        yield json.dumps([round(number / speed, 3), "o", redrawn(lines, shown) + HOME])
        shown = lines
