"""`PublishedReward`: the newest reward table of every term of the reward, which the learner reads.

Invariant: immutable; the main term is always among the tables.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from configs.reward_schema import MAIN_TERM
from reward_models.goals.published import PublishedGoals
from reward_models.table import RewardTable


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedReward:
    """The reward tables of all terms at one time (reward models -> learner; latest only)."""

    tables: Mapping[str, RewardTable]  # by term, over the ids of the channel that the term reads
    goals: PublishedGoals | None = None  # None in a run without goals

    @staticmethod
    def of(main: RewardTable) -> "PublishedReward":
        """With no other term than the main one."""
        return PublishedReward(tables={MAIN_TERM: main})

    @property
    def main(self) -> RewardTable:
        """The table of captions, the main term's."""
        return self.tables[MAIN_TERM]

    def knows_nothing(self, terms: Collection[str]) -> bool:
        """Whether no table of these terms contains anything but the empty item, as before the first judgement."""
        return all(table.knows_nothing for name, table in self.tables.items() if name in terms)
