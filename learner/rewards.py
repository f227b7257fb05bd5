"""The reward that the learner trains on: the environment's and the reward model's, mixed when a rollout is consumed.

Invariant: step t is paid for the caption that action t led to, an episode's last one included; an empty caption earns
nothing and is never unknown, and a caption that the table does not know yet earns nothing and is counted.
"""

from dataclasses import dataclass

import numpy as np

from configs.schema import RewardConfig
from reward_models.table import RewardTable


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedRewards:
    """Rewards of T steps of B environments."""

    total: np.ndarray
    """[T, B] f32: what V-trace sees."""
    intrinsic: np.ndarray
    """[T, B] f32: the intrinsic part of `total`, k_int included."""
    unknown_fraction: float
    """Share of steps whose caption is not in the table, in [0, 1]."""


def mix_rewards(
    *, extrinsic_rewards: np.ndarray, caption_ids: np.ndarray, caption_counts: np.ndarray, table: RewardTable, config: RewardConfig
) -> MixedRewards:
    """r = k_ext clip(s r_env, -c, c) + k_int R(caption) / count^beta (ONI section 2); the arrays are those of a rollout, [T, B]."""
    extrinsic = np.clip(config.extrinsic_scale * extrinsic_rewards, -config.extrinsic_clip, config.extrinsic_clip)
    caption_rewards, known = table.look_up(caption_ids)
    intrinsic = config.intrinsic_coefficient * caption_rewards / caption_counts.astype(np.float32) ** np.float32(config.count_exponent)
    return MixedRewards(
        total=(config.extrinsic_coefficient * extrinsic + intrinsic).astype(np.float32),
        intrinsic=intrinsic.astype(np.float32),
        unknown_fraction=float(1 - known.mean()),
    )
