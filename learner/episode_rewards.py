"""Rewards that depend on the running episode: goals paid once per episode (`unpaid`), and the cap on the share of
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
from numpy.typing import DTypeLike

from actors.rollout import Rollout
from reward_models.table import RewardTable

DECAY = 0.99


class RunningEpisodes:
    """What is known of each running episode: an array [*shape, B] per worker, zeroed where an episode ends."""

    def __init__(self, dtype: DTypeLike, *shape: int) -> None:
        self._dtype, self._shape = dtype, shape
        self._arrays: dict[str, np.ndarray] = {}  # by worker index

    def walk(self, rollout: Rollout) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each step t, the worker's array, to be updated in place, and which of its episodes end [B] bool."""
        index, done = rollout.worker_id.partition(".")[0], rollout.terminated | rollout.truncated
        if rollout.sequence_number == 0 or index not in self._arrays:  # a new worker's episodes have just begun
            self._arrays[index] = np.zeros((*self._shape, done.shape[1]), self._dtype)
        array = self._arrays[index]
        for t, ends in enumerate(done):
            yield t, array, ends
            array[..., ends] = 0

    def state_dict(self) -> dict[str, Any]:
        """Copies of the arrays by worker index."""
        return {index: array.copy() for index, array in self._arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._arrays = {index: np.array(array) for index, array in state.items()}


def unpaid(paid_goals: RunningEpisodes, rollout: Rollout, table: RewardTable) -> np.ndarray:
    """[T, B] bool: False where the caption reaches a goal already paid in the episode; updates the bitmasks."""
    goals = table.look_up_goals(rollout.caption_ids)
    bits = np.where(goals >= 0, np.uint64(1) << np.maximum(goals, 0).astype(np.uint64), np.uint64(0))
    is_unpaid = np.empty(bits.shape, bool)
    for t, paid, _ in paid_goals.walk(rollout):
        is_unpaid[t] = (paid & bits[t]) == 0
        paid |= bits[t]
    return is_unpaid


class ShareCap:
    """The current scale, and the reward sums of running episodes by worker and environment."""

    def __init__(self, max_share: float) -> None:
        self._ratio = max_share / (1.0 - max_share) if max_share < 1.0 else np.inf
        self._intrinsic, self._extrinsic = [0.0, 0.0], [0.0, 0.0]  # weighted sum and weight, over episodes
        self._running = RunningEpisodes(np.float64, 2)  # sums of |intrinsic| and of positive extrinsic reward

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
        for t, running, ends in self._running.walk(rollout):
            running += rewards[t]
            for of_intrinsic, of_extrinsic in running[:, ends].T.tolist():
                _add(self._intrinsic, of_intrinsic)
                if of_extrinsic:
                    _add(self._extrinsic, of_extrinsic)

    def state_dict(self) -> dict[str, Any]:
        """Means and running sums."""
        means = {"intrinsic": list(self._intrinsic), "extrinsic": list(self._extrinsic)}
        return {**means, "running": self._running.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._intrinsic, self._extrinsic = list(state["intrinsic"]), list(state["extrinsic"])
        self._running.load_state_dict(state["running"])


def _add(mean: list[float], value: float) -> None:
    mean[0] = DECAY * mean[0] + value
    mean[1] = DECAY * mean[1] + 1.0
