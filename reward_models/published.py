"""`PublishedReward`: the newest reward table of every term of the reward, which the learner reads.

Invariant: immutable; the main term is always among the tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from configs.reward_schema import MAIN_TERM
from reward_models.table import RewardTable


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedReward:
    """The reward tables of all terms at one time (reward models -> learner; latest only)."""

    tables: Mapping[str, RewardTable]  # by term, over the ids of the channel that the term reads

    @staticmethod
    def of(main: RewardTable) -> "PublishedReward":
        """With no other term than the main one."""
        return PublishedReward(tables={MAIN_TERM: main})

    @property
    def main(self) -> RewardTable:
        """The table of captions, the main term's."""
        return self.tables[MAIN_TERM]

    @property
    def knows_nothing(self) -> bool:
        """Whether no table contains anything but the empty item, as before the first judgement."""
        return all(table.knows_nothing for table in self.tables.values())
