"""The reward that the learner trains on, extrinsic + intrinsic, computed when a rollout is consumed; and the total
intrinsic reward paid per caption over the run.

Invariant: step t is paid for the caption that action t led to, an episode's last one included. The empty caption has
reward 0 and is never unknown; a caption that is not in the table yet has reward 0 and is counted. There is one sum per
caption that was ever rewarded, so their number is bounded by the reward tables of the run.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.rollout import Rollout
from configs.schema import RewardConfig
from learner.episode_rewards import RunningEpisodes, ShareCap, unpaid
from reward_models.table import RewardTable


class PaidRewards:
    """Sums of |intrinsic reward| by caption id."""

    def __init__(self) -> None:
        self._sums: dict[int, float] = {}

    def note(self, caption_ids: np.ndarray, intrinsic: np.ndarray) -> None:
        """Add the intrinsic rewards of some steps; `caption_ids` u64 and `intrinsic` f32 have the same shape."""
        earning = intrinsic != 0
        ids, places = np.unique(caption_ids[earning], return_inverse=True)
        sums = np.bincount(places.ravel(), np.abs(intrinsic[earning]).astype(np.float64), len(ids))
        for number, total in zip(ids.tolist(), sums.tolist(), strict=True):
            self._sums[number] = self._sums.get(number, 0.0) + total

    def largest(self, number: int) -> tuple[float, list[tuple[int, float]]]:
        """The total of all sums, and the `number` largest with their caption ids, the largest first."""
        return sum(self._sums.values()), heapq.nlargest(number, self._sums.items(), key=lambda entry: entry[1])

    def state_dict(self) -> dict[str, Any]:
        """All sums."""
        return {"ids": np.array(list(self._sums), np.uint64), "sums": np.array(list(self._sums.values()), np.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._sums = paid_rewards(state)


def paid_rewards(state: Mapping[str, Any]) -> dict[int, float]:
    """The sums in a saved state by caption id."""
    return dict(zip(state["ids"].tolist(), state["sums"].tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedRewards:
    """Rewards of T steps of B environments."""

    total: np.ndarray  # [T, B] f32: the reward in V-trace
    extrinsic: np.ndarray  # [T, B] f32: the extrinsic part of `total`, k_ext included
    intrinsic: np.ndarray  # [T, B] f32: the intrinsic part of `total`, k_int included
    unknown_fraction: float  # of steps whose caption is not in the table


class RewardMixer:
    """Mixes the rewards of rollouts, and keeps the goals already paid, the cap's scale and what each caption earned."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._cap = ShareCap(config.max_intrinsic_share)
        self.paid = PaidRewards()
        """What each caption earned in the whole run."""
        self._paid_goals = RunningEpisodes(np.uint64)  # a bitmask per episode

    def mix(self, rollouts: Sequence[Rollout], table: RewardTable) -> MixedRewards:
        """Rewards of `rollouts`, joined along the environment axis. Every rollout of a worker is given once, in order,
        to this method or to `pass_over`."""
        scale = self._cap.scale
        mixed = [self._mix(rollout, table, scale) for rollout in rollouts]
        unknown = np.average([one.unknown_fraction for one in mixed], weights=[one.total.size for one in mixed])
        parts = ("total", "extrinsic", "intrinsic")
        joined = {part: np.concatenate([getattr(one, part) for one in mixed], axis=1) for part in parts}
        return MixedRewards(**joined, unknown_fraction=float(unknown))

    def note_paid(self, rollouts: Sequence[Rollout], intrinsic: np.ndarray) -> None:
        """Count `intrinsic` [T, B] as paid: the learner has trained on it, without the lost environments."""
        caption_ids = [rollout.caption_ids[:, rollout.kept] for rollout in rollouts]
        self.paid.note(np.concatenate(caption_ids, axis=1), intrinsic)

    def pass_over(self, rollout: Rollout, table: RewardTable) -> None:
        """Update the state of the running episodes with a rollout that is dropped."""
        self._mix(rollout, table, 1.0)

    @property
    def intrinsic_scale(self) -> float:
        """The factor of `reward.max_intrinsic_share` on intrinsic reward, in [0, 1]."""
        return self._cap.scale

    def _mix(self, rollout: Rollout, table: RewardTable, scale: float) -> MixedRewards:
        mixed = mix_rewards(
            extrinsic_rewards=rollout.extrinsic_rewards,
            caption_ids=rollout.caption_ids,
            caption_counts=rollout.caption_counts,
            table=table,
            config=self._config,
            is_due=None if table.goals is None else unpaid(self._paid_goals, rollout, table),
        )
        if self._config.max_intrinsic_share == 1.0:
            return mixed
        self._cap.observe(rollout, mixed.intrinsic, mixed.extrinsic)
        intrinsic = mixed.intrinsic * np.float32(scale)
        return replace(mixed, intrinsic=intrinsic, total=mixed.extrinsic + intrinsic)

    def state_dict(self) -> dict[str, Any]:
        """Goals paid, cap, and rewards paid per caption."""
        return {"ledger": self._paid_goals.state_dict(), "cap": self._cap.state_dict(), "paid": self.paid.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._paid_goals.load_state_dict(state["ledger"])
        self._cap.load_state_dict(state["cap"])
        self.paid.load_state_dict(state["paid"])


def mix_rewards(
    *,
    extrinsic_rewards: np.ndarray,
    caption_ids: np.ndarray,
    caption_counts: np.ndarray,
    table: RewardTable,
    config: RewardConfig,
    is_due: np.ndarray | None = None,
) -> MixedRewards:
    """r = k_ext clip(s r_env, -c, c) + k_int R(caption) / count^beta (ONI section 2), from a rollout's arrays [T, B].
    `is_due` [T, B] bool is False where R is withheld because the caption's goal was already paid."""
    clipped = np.clip(config.extrinsic_scale * extrinsic_rewards, -config.extrinsic_clip, config.extrinsic_clip)
    extrinsic = config.extrinsic_coefficient * clipped
    caption_rewards, known = table.look_up(caption_ids)
    if is_due is not None:
        caption_rewards = np.where(is_due, caption_rewards, np.float32(0))
    discounts = caption_counts.astype(np.float32) ** np.float32(config.count_exponent)
    intrinsic = config.intrinsic_coefficient * caption_rewards / discounts
    return MixedRewards(
        total=(extrinsic + intrinsic).astype(np.float32),
        extrinsic=extrinsic.astype(np.float32),
        intrinsic=intrinsic.astype(np.float32),
        unknown_fraction=float(1 - known.mean()),
    )
