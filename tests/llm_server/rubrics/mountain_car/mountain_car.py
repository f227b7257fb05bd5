"""Captions for gymnasium's MountainCar-v0: what the last step showed, in words.

Few distinct sentences on purpose: one per place and kind of motion, so that a judge is asked a few dozen questions in
all.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

PLACES = (
    (-1.0, "near the top of the left slope"),
    (-0.75, "on the left slope"),
    (-0.35, "at the bottom of the valley"),
    (0.0, "on the right slope"),
    (0.3, "high on the right slope"),
    (0.5, "close to the flag"),
)
"""Upper bounds of the position, and what lies below them."""


def caption(observation: np.ndarray, info: Mapping[str, Any]) -> str:
    """One sentence from position and velocity."""
    position, velocity = map(float, observation)
    if position >= 0.5:
        return "The car has reached the flag."
    place = next(name for bound, name in PLACES if position < bound)
    speed = "fast" if abs(velocity) > 0.035 else "steadily" if abs(velocity) > 0.015 else "slowly"
    direction = "right" if velocity > 0 else "left"
    return f"The car is {place} and rolls {speed} to the {direction}."
