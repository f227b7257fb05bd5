"""Running mean and standard deviation of value targets: the units in which values are learnt.

Invariant: a pure function of the targets observed, in order, so that it can be saved and resumed exactly.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

HORIZON = 250
"""Observations that the running moments average over; of the first ones, all that there have been."""
SMALLEST_SCALE = 1e-4
"""Targets that hardly differ (no reward has come yet) are not blown up beyond this (PopArt, van Hasselt et al. 2016)."""


class ReturnScale:
    """First and second moment of the targets, as exponential means that begin as plain ones."""

    def __init__(self) -> None:
        self._count, self._mean, self._square = 0, 0.0, 0.0

    def observe(self, targets: Tensor) -> None:
        """Take in the targets [T, B] of one batch; those that are no numbers are left out."""
        finite = targets[targets.isfinite()]
        if not len(finite):
            return
        mean, square = torch.stack([finite.mean(), finite.square().mean()]).tolist()
        self._count += 1
        rate = 1 / min(self._count, HORIZON)
        self._mean += rate * (mean - self._mean)
        self._square += rate * (square - self._square)

    def unit(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, 0-dimensional f32; 0 and 1 before anything was observed."""
        deviation = math.sqrt(max(self._square - self._mean**2, SMALLEST_SCALE**2)) if self._count else 1.0
        return torch.tensor(self._mean, device=device), torch.tensor(deviation, device=device)

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"count": self._count, "mean": self._mean, "square": self._square}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Continue from `state_dict`; None, of a run from before it was kept, begins anew."""
        if state is not None:
            self._count, self._mean, self._square = state["count"], state["mean"], state["square"]
