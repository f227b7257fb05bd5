"""`PublishedGoals`: the newest state of the goal book, which the learner and the workers read.

Invariant: immutable; a goal's index, text and vector never change within a run, so that a recorded index means the same
goal whenever it is read.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedGoals:
    """All goals of a run at one time (reward models -> learner, workers; latest only). Masks are [4] u64: goal g is bit
    g % 64 of word g // 64."""

    version: tuple[int, int]  # (run_epoch, n): another one whenever anything below is another
    texts: tuple[str, ...]  # [G], G <= 256
    vectors: np.ndarray  # [G, D] f32, of unit length
    weights: np.ndarray  # [256] f32: what achieving a goal pays; 0 for none or an inactive one
    sampling: np.ndarray  # [256] f32 >= 0: weights with which workers draw goals
    before: np.ndarray  # [256] i16: the goal that must be achieved first in the episode, of a plan; -1 for none
    suggested_ids: np.ndarray  # [S] u64, strictly increasing: states
    suggested: np.ndarray  # [S, 4] u64: goals suggested in that state

    def equals(self, other: "PublishedGoals") -> bool:
        """Whether both say the same; versions are ignored."""
        return self.texts == other.texts and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("weights", "sampling", "before", "suggested_ids", "suggested")
        )
