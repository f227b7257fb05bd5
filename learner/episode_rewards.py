"""Rewards that depend on the running episode: goals paid once per episode (`GoalLedger`), and the cap on the share of
intrinsic reward in the total, `reward.max_intrinsic_share` (`ShareCap`).

Let I be the mean over finished episodes of sum_t |k_int R / N^beta|, and E the mean of sum_t max(0, k_ext clip(s
r_env)) over the finished episodes in which that sum was not 0 (a penalty for every step is no success); both are
running means with a decay of 0.99 per episode. With a cap s, intrinsic reward is multiplied by

    scale = min(1, s / (1 - s) * E / I)

so that the intrinsic reward of an average episode is at most the share s of the total with the extrinsic reward of a
rewarded episode. E is averaged over rewarded episodes alone, and scale stays 1 until there is one, because rewards are
sparse: with E over all episodes the first lucky success would switch exploration off.

Invariant: every rollout of a worker is observed in the order in which it was played, dropped rollouts included, so the
state describes the episodes and not the batches.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from actors.rollout import Rollout
from reward_models.table import RewardTable

DECAY = 0.99


class GoalLedger:
    """The goals already paid in each running episode, as one bitmask per worker and environment."""

    def __init__(self) -> None:
        self._paid: dict[str, np.ndarray] = {}  # worker index -> [B] u64

    def unpaid(self, rollout: Rollout, table: RewardTable) -> np.ndarray:
        """[T, B] bool: False where the caption reaches a goal already paid in the episode; updates the ledger."""
        goals = table.look_up_goals(rollout.caption_ids)
        bits = np.where(goals >= 0, np.uint64(1) << np.maximum(goals, 0).astype(np.uint64), np.uint64(0))
        unpaid = np.empty(bits.shape, bool)
        for t, paid, _ in _walk(self._paid, rollout, np.zeros(bits.shape[1], np.uint64)):
            unpaid[t] = (paid & bits[t]) == 0
            paid |= bits[t]
        return unpaid

    def state_dict(self) -> dict[str, Any]:
        """Bitmasks by worker index."""
        return {index: paid.copy() for index, paid in self._paid.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._paid = {index: np.array(paid) for index, paid in state.items()}


class ShareCap:
    """The current scale, and the reward sums of running episodes by worker and environment."""

    def __init__(self, max_share: float) -> None:
        self._ratio = max_share / (1.0 - max_share) if max_share < 1.0 else np.inf
        self._intrinsic, self._extrinsic = [0.0, 0.0], [0.0, 0.0]  # weighted sum and weight, over episodes
        # worker index -> [2, B] f64: |intrinsic| and positive extrinsic reward since the episode began
        self._running: dict[str, np.ndarray] = {}

    @property
    def scale(self) -> float:
        """The factor on intrinsic reward, in [0, 1]."""
        if not self._extrinsic[1] or not self._intrinsic[0] or np.isinf(self._ratio):
            return 1.0
        intrinsic, extrinsic = self._intrinsic[0] / self._intrinsic[1], self._extrinsic[0] / self._extrinsic[1]
        return min(1.0, self._ratio * extrinsic / intrinsic)

    def observe(self, rollout: Rollout, intrinsic: np.ndarray, extrinsic: np.ndarray) -> None:
        """Add the uncapped rewards [T, B] of a worker's next rollout."""
        rewards = np.stack([np.abs(intrinsic), np.maximum(extrinsic, 0)], 1).astype(np.float64)  # [T, 2, B]
        for t, running, done in _walk(self._running, rollout, np.zeros((2, intrinsic.shape[1]))):
            running += rewards[t]
            for of_intrinsic, of_extrinsic in running[:, done].T.tolist():
                _add(self._intrinsic, of_intrinsic)
                if of_extrinsic:
                    _add(self._extrinsic, of_extrinsic)

    def state_dict(self) -> dict[str, Any]:
        """Means and running sums."""
        return {
            "intrinsic": list(self._intrinsic),
            "extrinsic": list(self._extrinsic),
            "running": {index: sums.copy() for index, sums in self._running.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._intrinsic, self._extrinsic = list(state["intrinsic"]), list(state["extrinsic"])
        self._running = {index: np.array(sums) for index, sums in state["running"].items()}


def _walk(
    states: dict[str, np.ndarray], rollout: Rollout, initial: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each step t, the worker's state [..., B] of `states`, to be updated in place, and which episodes end [B] bool. It
    is `initial` where a new worker's episodes have just begun, and zeroed after a step where an episode ended."""
    index = rollout.worker_id.partition(".")[0]
    if rollout.sequence_number == 0 or index not in states:
        states[index] = initial
    for t, done in enumerate(rollout.terminated | rollout.truncated):
        yield t, states[index], done
        states[index][..., done] = 0


def _add(mean: list[float], value: float) -> None:
    mean[0] = DECAY * mean[0] + value
    mean[1] = DECAY * mean[1] + 1.0
