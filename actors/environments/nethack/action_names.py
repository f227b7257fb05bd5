"""NetHack's keys by the names of what they do, for people and for recordings.

Invariant: a name stands for one key, and `key_of` is the inverse of `name_of`.
"""

import functools
from collections.abc import Mapping

from nle import nethack

DIRECTIONS = {"N": "north", "E": "east", "S": "south", "W": "west"}


def name_of(key: int) -> str:
    """`north`, `far north` (a run), `kick`; a key that does nothing by itself is its character."""
    return _names().get(key) or (repr(chr(key)) if chr(key).isprintable() else f"key {key}")


def key_of(name: str) -> int:
    """The key of a name that `name_of` gives to a key with a meaning; 0 for any other."""
    return next((key for key, known in _names().items() if known == name), 0)


@functools.cache
def _names() -> Mapping[int, str]:
    names: dict[int, str] = {}
    for action in nethack.ACTIONS:
        words = action.name.lower().replace("_", " ")
        if isinstance(action, nethack.CompassDirection | nethack.CompassDirectionLonger):
            words = "".join(DIRECTIONS[letter] for letter in action.name)
            words = words if isinstance(action, nethack.CompassDirection) else f"far {words}"
        names.setdefault(int(action), words)
    return names
