"""Which goals have been paid in each running episode, for reward tables whose goals count once per episode.

Invariant: every rollout of a worker goes through in the order in which it was played, those that are dropped included, so the
ledger is that of the episodes, not of what was trained on.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from actors.rollout import Rollout
from reward_models.table import RewardTable


class GoalLedger:
    """A bitmask of goals per worker and environment."""

    def __init__(self) -> None:
        self._paid: dict[str, np.ndarray] = {}  # worker index -> [B] u64

    def unpaid(self, rollout: Rollout, table: RewardTable) -> np.ndarray:
        """[T, B] bool: False where the step's caption reaches a goal that the episode has been paid for before; the ledger moves on."""
        goals = table.look_up_goals(rollout.caption_ids)
        bits = np.where(goals >= 0, np.uint64(1) << np.maximum(goals, 0).astype(np.uint64), np.uint64(0))
        done = rollout.terminated | rollout.truncated
        paid = self._of(rollout)
        unpaid = np.empty(bits.shape, bool)
        for t in range(len(bits)):
            unpaid[t] = (paid & bits[t]) == 0
            paid |= bits[t]
            paid[done[t]] = 0
        return unpaid

    def _of(self, rollout: Rollout) -> np.ndarray:
        index = rollout.worker_id.partition(".")[0]
        if rollout.sequence_number == 0 or index not in self._paid:  # a new worker's episodes have just begun
            self._paid[index] = np.zeros(rollout.actions.shape[1], np.uint64)
        return self._paid[index]

    def state_dict(self) -> dict[str, Any]:
        """Bitmasks by worker index."""
        return {index: paid.copy() for index, paid in self._paid.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._paid = {index: np.array(paid) for index, paid in state.items()}
