"""Rewards that depend on the running episode: goals that are paid once per episode (`GoalLedger`), and the cap on intrinsic reward's
share of the total, `reward.max_intrinsic_share` (`ShareCap`).

Let I be the mean over finished episodes of sum_t |k_int R / N^beta|, and E the mean of sum_t max(0, k_ext clip(s r_env)) over those
finished episodes in which that sum was not 0 (a penalty for every step is no success); both are running means that forget by a factor of
0.99 per episode. With a cap s, intrinsic reward is multiplied by

    scale = min(1, s / (1 - s) * E / I)

so that what an average episode earns intrinsically is at most the share s beside what a rewarded episode earns extrinsically. Averaging
E over rewarded episodes alone, and leaving scale at 1 until there is one, is what makes this sensible for sparse rewards: with E over all
episodes the first lucky success would switch exploration off.

Invariant: every rollout of a worker goes through in the order in which it was played, those that are dropped included, so the record is
that of the episodes, not of what was trained on.
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


FORGETTING = 0.99


class ShareCap:
    """The scale of the moment, and the sums of running episodes by worker and environment."""

    def __init__(self, max_share: float) -> None:
        self._ratio = max_share / (1.0 - max_share) if max_share < 1.0 else np.inf
        self._intrinsic, self._extrinsic = [0.0, 0.0], [0.0, 0.0]  # weighted sum and weight, over episodes
        self._running: dict[
            str, np.ndarray
        ] = {}  # worker index -> [2, B] f64: |intrinsic|, positive extrinsic since the episode began

    @property
    def scale(self) -> float:
        """What intrinsic reward is multiplied by now, in [0, 1]."""
        if not self._extrinsic[1] or not self._intrinsic[0] or np.isinf(self._ratio):
            return 1.0
        return min(
            1.0, self._ratio * (self._extrinsic[0] / self._extrinsic[1]) / (self._intrinsic[0] / self._intrinsic[1])
        )

    def observe(self, rollout: Rollout, intrinsic: np.ndarray, extrinsic: np.ndarray) -> None:
        """Take in the uncapped rewards [T, B] of a worker's next rollout."""
        index = rollout.worker_id.partition(".")[0]
        if rollout.sequence_number == 0 or index not in self._running:
            self._running[index] = np.zeros((2, intrinsic.shape[1]))
        running, done = self._running[index], rollout.terminated | rollout.truncated
        rewards = np.stack([np.abs(intrinsic), np.maximum(extrinsic, 0)], 1).astype(np.float64)  # [T, 2, B]
        for t in range(len(rewards)):
            running += rewards[t]
            for column in np.flatnonzero(done[t]):
                self._finish(*running[:, column])
            running[:, done[t]] = 0.0

    def _finish(self, intrinsic: float, extrinsic: float) -> None:
        _add(self._intrinsic, intrinsic)
        if extrinsic:
            _add(self._extrinsic, extrinsic)

    def state_dict(self) -> dict[str, Any]:
        """Means and running sums."""
        return {
            "intrinsic": [float(value) for value in self._intrinsic],
            "extrinsic": [float(value) for value in self._extrinsic],
            "running": {index: sums.copy() for index, sums in self._running.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._intrinsic, self._extrinsic = list(state["intrinsic"]), list(state["extrinsic"])
        self._running = {index: np.array(sums) for index, sums in state["running"].items()}


def _add(mean: list[float], value: float) -> None:
    mean[0] = FORGETTING * mean[0] + float(value)
    mean[1] = FORGETTING * mean[1] + 1.0
