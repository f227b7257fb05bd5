"""A recorded episode: what was seen, done, said and paid at every step.

Invariant: made by playing one game of an evaluation again with the actions that were taken in it, so its return is that
of the evaluation. Moment 0 is the observation after the reset, and has no action.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One environment step (replay -> terminal, files, report): an action and what it led to."""

    step: int
    """Environment steps since the reset, this one included."""
    action: str | None
    """Name of the action that led here; None after the reset."""
    reward: float
    """The environment's reward for it."""
    caption: str
    """Normalised caption of what it led to, empty where nothing was reported."""
    intrinsic: float
    """Intrinsic reward with the checkpoint's reward table: R / (occurrence in this episode)^beta, without k_int; 0 for
    captions that the table does not know."""
    probability: float | None
    """The judge's probability for the caption; None where it was never judged."""
    value: float | None
    """The policy's value estimate of this moment in units of reward; None for players that have none."""
    screen: tuple[str, ...] | None
    """Rows of the terminal, for games that have one."""
    colours: np.ndarray | None
    """[rows, columns] u8: the colour of each character of `screen` (0 to 15, as in terminals)."""
    picture: np.ndarray | None
    """[height, width, 3] u8, for environments that show pictures and have no screen."""
    cursor: tuple[int, int] | None = None
    """Row and column of the terminal's cursor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One episode, from its reset to its end."""

    environment: str
    player: str
    """`policy`, `blind` or `random`."""
    game: tuple[int, int, int]
    """Which game of the evaluation: its round, environment and episode, each from 0 on."""
    metrics: Mapping[str, float]
    """The episode's return, length, and the environment's own metrics, as `delphi eval` counts them."""
    moments: tuple[Moment, ...]
