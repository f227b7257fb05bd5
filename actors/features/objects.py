"""Relational features of a list of objects (`env.features=[objects:module:function]`): how many there are of each kind,
where the nearest one is, and whether one touches the agent (the relations of OCALM, Kaufmann et al. 2024).

An object is a mapping with `kind` and the position of its centre, `x` and `y`; `w` and `h` are its extents (1 where
they are not given). One without `x` and `y` says that there may be objects of its kind. The kind `self` is the agent.

    self_x, self_y                        the agent's position
    count_K                               objects of kind K
    nearest_K_dx, nearest_K_dy            from the agent to the centre of the nearest one; 0 where there is none
    nearest_K_distance                    its Euclidean distance; MISSING_DISTANCE where there is none
    touching_K                            1 where one overlaps or adjoins the agent, else 0

Where the agent is not among the objects, all but `count_K` is unknown (NaN). Without a `self` in the first list there
is `count_K` only.

Invariant: the kinds are those of the first list; any other one later is an error.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from actors.environments.errors import shown
from actors.environments.protocol import finite_number

MISSING_DISTANCE = 1000.0
"""The distance of what is not there."""
MAX_COORDINATE = 1e30
SELF = "self"
NAN = float("nan")
Box = tuple[float, float, float, float]
"""Centre (x, y) and extents (w, h)."""


class Relations:
    """The relational features of objects of the kinds in the first list."""

    def __init__(self, first: Any) -> None:
        """Raises ValueError for what is no list of objects."""
        kinds = _by_kind(first)
        self._first, self._has_self = kinds.keys(), SELF in kinds
        self._kinds = sorted(kinds.keys() - {SELF})
        names = ["self_x", "self_y"] if self._has_self else []
        for kind in self._kinds:
            names.append(f"count_{kind}")
            if self._has_self:
                names += [f"nearest_{kind}_{part}" for part in ("dx", "dy", "distance")] + [f"touching_{kind}"]
        self.names = tuple(names)

    def read(self, objects: Any) -> list[float]:
        """The features of a list of objects, in the order of `names`. Raises ValueError for what is no such list, and
        for a new kind."""
        found = _by_kind(objects)
        if not found.keys() <= self._first:
            new = next(kind for kind in found if kind not in self._first)
            had = ", ".join(sorted(self._first)) or "none"
            advice = f"name it from the first reset on, by {{'kind': {new!r}}} without x and y where there is none"
            raise ValueError(f"got an object of the new kind {new!r} (at the first reset there were {had}); {advice}")
        if not self._has_self:
            return [float(len(found.get(kind, ()))) for kind in self._kinds]
        agents = found.get(SELF, ())
        if len(agents) > 1:
            raise ValueError(f"got {len(agents)} objects of the kind {SELF!r}, wanted at most one")
        numbers = [*agents[0][:2]] if agents else [NAN, NAN]
        for kind in self._kinds:
            boxes = found.get(kind, ())
            numbers.append(float(len(boxes)))
            numbers += _seen_from(agents[0], boxes) if agents else [NAN] * 4
        return numbers


def _seen_from(agent: Box, boxes: Sequence[Box]) -> list[float]:
    """dx, dy, distance of the nearest one, and whether any touches the agent."""
    if not boxes:
        return [0.0, 0.0, MISSING_DISTANCE, 0.0]
    x, y, width, height = agent
    touches = any(2 * abs(bx - x) <= width + w and 2 * abs(by - y) <= height + h for bx, by, w, h in boxes)
    distance, dx, dy = min((math.hypot(bx - x, by - y), bx - x, by - y) for bx, by, _, _ in boxes)
    return [dx, dy, distance, float(touches)]


def _by_kind(objects: Any) -> dict[str, list[Box]]:
    """The objects with a position, by kind; kinds of which there may be some have none."""
    if not isinstance(objects, list | tuple):
        raise ValueError(f"gave {type(objects).__name__} {shown(objects)}, wanted a list of objects")
    found: dict[str, list[Box]] = {}
    for thing in objects:
        kind = thing.get("kind") if isinstance(thing, Mapping) else None
        if not isinstance(kind, str):
            wanted = "wanted a mapping with `kind` (a str), `x` and `y`"
            raise ValueError(f"gave the object {shown(thing)}, {wanted}")
        boxes = found.setdefault(kind, [])
        if "x" in thing or "y" in thing:
            numbers = [finite_number(thing.get(key, default)) for key, default in _NUMBERS]
            if any(number is None or abs(number) > MAX_COORDINATE for number in numbers):
                raise ValueError(f"gave the object {shown(thing)}, wanted finite numbers for x, y (and w, h)")
            boxes.append(tuple(numbers))  # type: ignore[arg-type]
    return found


_NUMBERS = (("x", None), ("y", None), ("w", 1.0), ("h", 1.0))
"""Keys of an object, and what they are where they are not given (None: they must be)."""
