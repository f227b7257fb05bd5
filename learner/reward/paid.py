"""`PaidRewards`: the total that was paid over the run, by item or by goal.

Invariant: there is one sum per number that ever earned anything, so there are at most as many as the run's reward
tables have items.
"""

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np


class PaidRewards:
    """Sums of intrinsic reward by item id, of absolute values unless `with_sign`."""

    def __init__(self, *, with_sign: bool = False) -> None:
        self._with_sign = with_sign
        self._sums: dict[int, float] = {}

    def note(self, items: np.ndarray, intrinsic: np.ndarray) -> None:
        """Add the intrinsic rewards of some steps; `items` u64 and `intrinsic` f32 have the same shape."""
        earning = intrinsic != 0
        ids, places = np.unique(items[earning], return_inverse=True)
        amounts = intrinsic[earning] if self._with_sign else np.abs(intrinsic[earning])
        sums = np.bincount(places.ravel(), amounts.astype(np.float64), len(ids))
        for number, total in zip(ids.tolist(), sums.tolist(), strict=True):
            self._sums[number] = self._sums.get(number, 0.0) + total

    def largest(self, number: int) -> tuple[float, list[tuple[int, float]]]:
        """The total of all sums, and the `number` largest with their item ids, the largest first."""
        return sum(self._sums.values()), heapq.nlargest(number, self._sums.items(), key=lambda entry: entry[1])

    def costliest(self, number: int) -> list[tuple[int, float]]:
        """The `number` lowest sums below 0 with their item ids, the lowest first."""
        costs = (entry for entry in self._sums.items() if entry[1] < 0)
        return heapq.nsmallest(number, costs, key=lambda entry: entry[1])

    def state_dict(self) -> dict[str, Any]:
        """All sums."""
        return {"ids": np.array(list(self._sums), np.uint64), "sums": np.array(list(self._sums.values()), np.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._sums = paid_rewards(state)


def paid_rewards(state: Mapping[str, Any]) -> dict[int, float]:
    """The sums in a saved state by item id."""
    return dict(zip(state["ids"].tolist(), state["sums"].tolist(), strict=True))
