"""Error messages of the configuration: the nearest known name to one that does not exist.

Invariant: imports nothing heavy; every package may use it.
"""

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` (did you mean 'X'?)`, or nothing where no name is near; of dotted names the last part alone may match too."""
    names = list(known)
    last = given.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(given, names, 1) or [name for name in names if name.rsplit(".", 1)[-1] == last]
    return f" (did you mean '{near[0]}'?)" if near else ""
