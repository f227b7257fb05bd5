"""Parts of error messages: an exception or a text on one line, and the nearest known name to an unknown one.

Invariant: imports nothing heavy; every package may use it.
"""

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` (did you mean 'X'?)`, or empty if no name is near; a dotted name also matches by its last part alone."""
    names = list(known)
    last = given.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(given, names, 1) or [name for name in names if name.rsplit(".", 1)[-1] == last]
    return f" (did you mean '{near[0]}'?)" if near else ""


def one_line(what: object, max_characters: int = 600) -> str:
    """`what` as text on one line of bounded length; empty where an exception's own `__str__` fails."""
    try:
        line = " ".join(str(what).split())
    except Exception:
        return ""
    return line if len(line) <= max_characters else f"{line[: max_characters - 1]}…"


def named(error: BaseException, max_characters: int = 300) -> str:
    """`TypeError: its message`, on one line."""
    return f"{type(error).__name__}: {one_line(error, max_characters)}"
