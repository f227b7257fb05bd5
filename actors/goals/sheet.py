"""`GoalSheet`: what a worker knows of a run's goals, from which it gives each environment one to pursue.

Invariant: immutable; within a run a goal keeps its number, text and vector, so a worker with an older sheet means the
same goals.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from actors.captions import caption_id
from configs.goal_schema import MAX_GOALS

ARRAYS = ("vectors", "sampling", "before", "suggested_ids", "suggested", "achieved_ids", "achieved")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GoalSheet:
    """All goals of a run at one time (learner's process -> workers; latest only). Masks are [4] u64: goal g is bit
    g % 64 of word g // 64."""

    version: tuple[int, ...]  # another one whenever anything below is another
    texts: tuple[str, ...]  # [G], G <= 256
    vectors: np.ndarray  # [G, D] f32, of unit length
    sampling: np.ndarray  # [256] f32 >= 0: weights with which goals are drawn
    before: np.ndarray  # [256] i16: the goal that must be achieved first in the episode, of a plan; -1 for none
    suggested_ids: np.ndarray  # [S] u64, strictly increasing: states
    suggested: np.ndarray  # [S, 4] u64: goals suggested in that state
    achieved_ids: np.ndarray  # [N] u64, strictly increasing: items of the channel that goals read
    achieved: np.ndarray  # [N, 4] u64: goals that the item achieves

    def achieved_by(self, ids: np.ndarray) -> np.ndarray:
        """[N, 4] u64: the goals that items `ids` [N] u64 achieve; none for unknown ones."""
        return look_up_masks(self.achieved_ids, self.achieved, ids)

    def suggested_in(self, ids: np.ndarray) -> np.ndarray:
        """[N, 4] u64: the goals suggested in the states `ids` [N] u64; none in unknown ones."""
        return look_up_masks(self.suggested_ids, self.suggested, ids)

    def plan_of(self, goal: int) -> list[int]:
        """The goals that must be achieved in turn, up to this one. Raises ValueError for one that precedes itself."""
        plan = [goal]
        while (earlier := int(self.before[plan[-1]])) >= 0:
            if earlier in plan:
                raise ValueError(f"goal {earlier} ({self.texts[earlier]!r}) must be achieved before itself")
            plan.append(earlier)
        return plan[::-1]

    def equals(self, other: "GoalSheet") -> bool:
        """Whether both say the same; versions are ignored."""
        return self.texts == other.texts and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ARRAYS
        )

    def state_dict(self) -> dict[str, Any]:
        """Nested dict of arrays and JSON values."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**state, "version": list(self.version), "texts": list(self.texts)}

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> "GoalSheet":
        """The inverse of `state_dict`."""
        return GoalSheet(**{**state, "version": tuple(state["version"]), "texts": tuple(state["texts"])})


def text_key(text: str) -> int:
    """What texts share that differ in case, spaces and a last full stop only: an id as captions have; 0 for none."""
    return caption_id(" ".join(text.lower().split()).rstrip("."))


def goals_in(masks: np.ndarray) -> np.ndarray:
    """[..., 256] bool of masks [..., 4] u64."""
    octets = np.ascontiguousarray(masks, "<u8").view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little").view(bool)


def mask_of(goals: np.ndarray) -> np.ndarray:
    """[..., 4] u64 of goals [..., 256] bool; the inverse of `goals_in`."""
    return np.packbits(goals, axis=-1, bitorder="little").view("<u8").astype(np.uint64)


NO_MASK = np.zeros(MAX_GOALS // 64, np.uint64)


def look_up_masks(known: np.ndarray, masks: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[N, 4] u64 of `ids` [N] u64: the row of `masks` [K, 4] where `known` [K], strictly increasing, has the id; zeros
    for an unknown one."""
    if not len(known):
        return np.broadcast_to(NO_MASK, (*ids.shape, len(NO_MASK)))
    places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where((known[places] == ids)[..., None], masks[places], np.uint64(0))
