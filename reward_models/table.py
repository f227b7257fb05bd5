"""`RewardTable`, caption id -> intrinsic reward, which the learner reads; and `IdIndex`, a fast look-up of ids in a
sorted array.

Invariant: immutable once built; the empty caption (id 0) is always known, with reward 0. A look-up returns the same as
a binary search over the whole array, and takes two to four comparisons for ids that are hashes, as caption ids are.
"""

from dataclasses import dataclass, field

import numpy as np

from reward_models.goals.masks import WORDS


class IdIndex:
    """Sorted ids in buckets by their leading bits, with one to two ids per bucket on average."""

    def __init__(self, ids: np.ndarray) -> None:
        """`ids` [N] u64, strictly increasing, N >= 1; not copied."""
        self._ids = ids
        bits = max(1, len(ids).bit_length() - 1)
        self._shift = np.uint64(64 - bits)
        self._starts = np.zeros(2**bits + 1, np.int32)
        sizes = np.bincount((ids >> self._shift).astype(np.int64), minlength=2**bits)
        np.cumsum(sizes, out=self._starts[1:])
        self._depth = int(sizes.max()).bit_length()

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions int and known bool, both in the shape of `ids` (u64); an unknown id has any valid position."""
        buckets = (ids >> self._shift).astype(np.int64)
        low, high = self._starts.take(buckets), self._starts.take(buckets + 1)
        # One binary search for all ids at once, each in its own bucket, so that the random memory accesses overlap.
        for _ in range(self._depth):
            middle = (low + high) >> 1
            is_less = (self._ids.take(middle, mode="clip") < ids) & (middle < high)
            low, high = np.where(is_less, middle + 1, low), np.where(is_less, high, middle)
        positions = np.minimum(low, len(self._ids) - 1)
        return positions, self._ids.take(positions) == ids


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTable:
    """Rewards of all captions known at one version (reward model -> learner; latest only)."""

    ids: np.ndarray  # [N] u64, strictly increasing; contains 0
    rewards: np.ndarray  # [N] f32, finite
    reward_version: tuple[int, int]  # (run_epoch, n)
    goals: np.ndarray | None = None
    """[N, 4] u64: mask (`reward_models.goals.masks`) of the goals that each caption achieves; None without goals."""
    _index: IdIndex = field(init=False, repr=False)
    _achieves: np.ndarray = field(init=False, repr=False)  # [N] bool, whether any goal

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", IdIndex(self.ids))
        achieves = np.zeros(len(self.ids), bool) if self.goals is None else self.goals.any(axis=1)
        object.__setattr__(self, "_achieves", achieves)

    @staticmethod
    def build(
        ids: np.ndarray, rewards: np.ndarray, reward_version: tuple[int, int], goals: np.ndarray | None = None
    ) -> "RewardTable":
        """A table from unordered distinct `ids` [N] u64, `rewards` [N] and `goals` [N, 4], without captions of NaN
        reward. Raises ValueError for unequal lengths, repeated ids or infinite rewards."""
        ids = np.asarray(ids, np.uint64)
        rewards = np.asarray(rewards, np.float32)
        if ids.shape != rewards.shape or ids.ndim != 1:
            raise ValueError(f"ids and rewards must be vectors of one length, got {ids.shape} and {rewards.shape}")
        if goals is not None and goals.shape != (len(ids), WORDS):
            raise ValueError(f"goals must be masks of shape {(len(ids), WORDS)}, got {goals.shape}")
        keep = ~np.isnan(rewards) & (ids != 0)
        ids, rewards = np.append(ids[keep], np.uint64(0)), np.append(rewards[keep], np.float32(0))
        if not np.isfinite(rewards).all():
            raise ValueError("rewards must be finite: an infinite intrinsic reward would make every return infinite")
        order = np.argsort(ids)
        ids, rewards = ids[order], rewards[order]
        if goals is not None:
            goals = np.append(np.asarray(goals, np.uint64)[keep], np.zeros((1, WORDS), np.uint64), axis=0)[order]
            goals.flags.writeable = False
        if (ids[1:] == ids[:-1]).any():
            raise ValueError("caption ids must be distinct")
        ids.flags.writeable = rewards.flags.writeable = False
        return RewardTable(ids=ids, rewards=rewards, reward_version=reward_version, goals=goals)

    @staticmethod
    def empty(run_epoch: int = 0) -> "RewardTable":
        """The table of a run before its first judgement."""
        return RewardTable.build(np.empty(0, np.uint64), np.empty(0, np.float32), (run_epoch, 0))

    def look_up_goals(self, ids: np.ndarray) -> np.ndarray:
        """Masks [*shape, 4] u64 of the goals that `ids` [*shape] u64 achieve; 0 for unknown captions."""
        if self.goals is None:
            return np.zeros((*ids.shape, WORDS), np.uint64)
        positions, known = self._index.find(ids)
        return np.where(known[..., None], self.goals[positions], np.uint64(0))

    def find_goals(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Known bool in the shape of `ids` (u64), the flat places [E] of those that achieve goals, in order, and their
        masks [E, 4] u64."""
        positions, known = self._index.find(ids)
        places = np.flatnonzero(known & self._achieves.take(positions))
        masks = self._all_goals()[positions.ravel()[places]] if len(places) else np.zeros((0, WORDS), np.uint64)
        return known, places, masks

    def equals(self, other: "RewardTable") -> bool:
        """Whether both have the same captions, rewards and goals; versions are ignored."""
        return (
            np.array_equal(self.ids, other.ids)
            and np.array_equal(self.rewards, other.rewards)
            and np.array_equal(self._all_goals(), other._all_goals())
        )

    def _all_goals(self) -> np.ndarray:
        return np.zeros((len(self.ids), WORDS), np.uint64) if self.goals is None else self.goals

    @property
    def knows_nothing(self) -> bool:
        """Whether it contains only the empty caption, as before the first judgement."""
        return len(self.ids) == 1

    def look_up(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewards f32 and known bool, both in the shape of `ids` (u64); unknown captions have reward 0."""
        positions, known = self._index.find(ids)
        return np.where(known, self.rewards.take(positions), np.float32(0)), known

    def __len__(self) -> int:
        return len(self.ids)
