"""A corridor in which faults can be ordered, registered on import: `tests.faults.faulty_environments:Faulty-v0`.

Invariant: without an order it is `tests.toy_environments:HummingCorridor-v0`, step for step.
"""

import ctypes
import os
import random
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from tests.toy_environments import HummingCorridor

FOREVER_S = 100_000


class Faulty(HummingCorridor):
    """What befalls it is drawn from a generator of its own, so that the game is the same with and without."""

    def __init__(
        self,
        length: int = 10,
        num_tunes: int = 8,
        raise_chance: float = 0.0,
        stall_chance: float = 0.0,
        abort_chance: float = 0.0,
        step_s: float = 0.0,
        orders: str = "",
    ) -> None:
        """Chances are per step. `orders`: a folder; one environment takes each file found there, by its name (see
        `_obey`)."""
        super().__init__(length, num_tunes)
        self._chances = {"raise": raise_chance, "stall": stall_chance, "abort": abort_chance}
        self._step_s, self._orders = step_s, Path(orders) if orders else None
        self._fate = random.Random()

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """See the class."""
        if self._step_s:
            time.sleep(self._step_s)
        for order, chance in self._chances.items():
            if chance and self._fate.random() < chance:
                self._obey(order)
        for file in self._orders.iterdir() if self._orders else ():
            try:
                file.unlink()
            except FileNotFoundError:  # another environment has taken it
                continue
            self._obey(file.name)
        return super().step(action)

    def _obey(self, order: str) -> None:
        if order == "raise":
            raise OSError("the level could not be drawn")
        if order == "stall":
            time.sleep(FOREVER_S)
        if order == "hold":  # in C, holding the GIL
            ctypes.PyDLL(None).sleep(FOREVER_S)
        if order == "hang":  # in C, without the GIL
            ctypes.CDLL(None).sleep(FOREVER_S)
        if order == "abort":
            os.abort()


class OnceBroken(HummingCorridor):
    """Raises in the given step of the given environment (in the order of their making), and then never again."""

    made = 0

    def __init__(self, which: int = 0, at_step: int = 0, in_reset: bool = False) -> None:
        super().__init__(6, 8)
        self._countdown = at_step if OnceBroken.made == which else -1
        self._in_reset = in_reset
        OnceBroken.made += 1

    def reset(self, **arguments: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Raises where it is to be in a reset."""
        if self._in_reset and self._countdown >= 0:
            raise OSError("no level can be made")
        return super().reset(**arguments)

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Raises once."""
        self._countdown -= 1
        if self._countdown == -1 and not self._in_reset:
            self._countdown = -2
            raise OSError("the level could not be drawn")
        return super().step(action)


for _kind in (Faulty, OnceBroken):
    gymnasium.register(f"{_kind.__name__}-v0", entry_point=f"{__name__}:{_kind.__name__}")
