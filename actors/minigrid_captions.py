"""Captioners of MiniGrid and BabyAI (`env.captioner=actors.minigrid_captions:describe`): what the agent carries, faces
and sees, in words.

Invariant: reads only the agent's own view as the environments give it (7 x 7 cells of type, colour and state, and the
mission), so a caption tells no more than the policy sees, and there are few of them, whatever the layout.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
DOOR, GOAL, LAVA, AGENT = 4, 8, 9, 10
THINGS = {5: "key", 6: "ball", 7: "box"}
"""Object codes in the view's first layer; 0 to 3 are unseen, empty, wall and floor."""
DOOR_STATES = ("open", "closed", "locked")
SEPARATOR = "  "
"""Between the messages of one caption."""


def describe(obs: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """The caption of one observation; empty if only floor and walls are near. ValueError for anything else than the
    agent's own view, such as a picture or the whole grid, which wrappers of MiniGrid give."""
    view = agents_view(obs)
    # The agent's own cell, which shows what it carries; it looks towards row 0.
    middle, last = view.shape[0] // 2, view.shape[1] - 1
    told = [_carried(view[middle, last]), _faced(view[middle, last - 1])]
    if (view[..., 0] == GOAL).any():
        told.append("The goal is in sight.")
    return SEPARATOR.join(filter(None, told))


def describe_for_mission(obs: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """`describe`, preceded by the mission: for environments whose mission changes between episodes."""
    told = describe(obs, info)
    return f"Mission: {obs['mission']}.{SEPARATOR}{told}" if told else ""


def agents_view(obs: Any) -> np.ndarray:
    """The agent's view in an observation: type, colour and state of each cell; ValueError for anything else."""
    view = np.asarray(obs["image"] if isinstance(obs, Mapping) else obs)
    is_grid = isinstance(obs, Mapping) and view.ndim == 3 and view.shape[2] == 3
    # The agent itself stands only in views of the whole grid; pictures have other values in their last layer.
    if not is_grid or (view[..., 0] == AGENT).any() or view[..., 2].max() >= len(DOOR_STATES):
        what = f"got {type(obs).__name__} with an image of shape {view.shape} and values up to {view.max()}"
        raise ValueError(
            f"{what}, wanted MiniGrid's own observation with the agent's view; remove the wrapper that changes it, or"
            " use a function of your own"
        )
    return view


def _carried(cell: np.ndarray) -> str:
    kind, colour, _ = cell.tolist()
    return f"You have picked up a {COLOURS[colour]} {THINGS[kind]}." if kind in THINGS else ""


def _faced(cell: np.ndarray) -> str:
    kind, colour, state = cell.tolist()
    if kind == DOOR:
        return f"The {COLOURS[colour]} door in front of you is {DOOR_STATES[state]}."
    if kind in THINGS:
        return f"A {COLOURS[colour]} {THINGS[kind]} lies in front of you."
    return "There is lava in front of you." if kind == LAVA else ""
