"""`GoalCounts`: how often goals were given and achieved since a worker's last report.

Invariant: plain sums, so that reports may be added up in any order.
"""

from dataclasses import dataclass, fields

import numpy as np

from configs.goal_schema import MAX_GOALS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GoalCounts:
    """By goal, [256] i64 each, and of all episodes (worker -> goal book). An episode that its environment lost counts
    neither as success nor as failure."""

    attempted: np.ndarray  # times that a goal was given to pursue
    given_achieved: np.ndarray  # of these, times that it was achieved while it was the given one
    achieved: np.ndarray  # episodes in which it was achieved, given or not; of a plan in its turn
    achieved_in_successes: np.ndarray  # of these, those that ended as successes
    achieved_in_failures: np.ndarray  # those that ended otherwise
    successes: (
        int  # episodes that ended so: the environment says `success`, or, where it says nothing, the return is > 0
    )
    failures: int  # those that ended otherwise

    @staticmethod
    def zeros() -> "GoalCounts":
        """Of nothing."""
        return GoalCounts(**{name: np.zeros(MAX_GOALS, np.int64) for name in BY_GOAL}, successes=0, failures=0)

    def __add__(self, other: "GoalCounts") -> "GoalCounts":
        return GoalCounts(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


BY_GOAL = ("attempted", "given_achieved", "achieved", "achieved_in_successes", "achieved_in_failures")
