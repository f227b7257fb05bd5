"""What each caption has been paid over the whole run: the mass of intrinsic reward that was trained on.

Invariant: one sum per caption that ever earned something, so it is bounded by the reward tables of the run.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


class PaidRewards:
    """Sums of |intrinsic reward| by caption id."""

    def __init__(self) -> None:
        self._sums: dict[int, float] = {}

    def note(self, caption_ids: np.ndarray, intrinsic: np.ndarray) -> None:
        """Add the intrinsic rewards of some steps, `intrinsic` f32 in the shape of `caption_ids` u64."""
        earning = intrinsic != 0
        ids, places = np.unique(caption_ids[earning], return_inverse=True)
        sums = np.bincount(places.ravel(), np.abs(intrinsic[earning]).astype(np.float64), len(ids))
        for number, total in zip(ids.tolist(), sums.tolist(), strict=True):
            self._sums[number] = self._sums.get(number, 0.0) + total

    def state_dict(self) -> dict[str, Any]:
        """All sums."""
        return {"ids": np.array(list(self._sums), np.uint64), "sums": np.array(list(self._sums.values()), np.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._sums = paid_rewards(state)


def paid_rewards(state: Mapping[str, Any]) -> dict[int, float]:
    """The sums in a saved state by caption id."""
    return dict(zip(state["ids"].tolist(), state["sums"].tolist(), strict=True))
