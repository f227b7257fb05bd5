"""The newest reward table of one term, and the newest goals, in the learner's process, over one annotator after the
other.

Invariant: their versions only go up; tables of two annotators are never mixed.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from actors.rollout import Version
from reward_models.goals.published import PublishedGoals
from reward_models.table import RewardTable

INHERITED_S = 300.0
"""How long a previous annotator's table is used while the new annotator's knows fewer captions."""


class LatestTable:
    """`table` is the one in use."""

    def __init__(self, table: RewardTable) -> None:
        self.table = table
        self.known: Version | None = None
        """The annotator's own version of the newest table received; its versions restart with each new annotator."""
        self._offered: RewardTable | None = None  # a new annotator's, not in use yet
        self._lost_at = -math.inf  # when the annotator whose table is in use died

    def offer(self, table: RewardTable | None) -> None:
        """Use the newest table, which has come (None: no newer one has). A new annotator's may be normalised
        differently, so the two cannot be merged; the one in use is kept until the new one knows as many captions, for
        at most INHERITED_S."""
        if table is not None:
            self.known, self._offered = table.reward_version, table
        is_inherited = time.monotonic() - self._lost_at < INHERITED_S
        if self._offered is None or (is_inherited and len(self._offered) < len(self.table)):
            return
        run_epoch, number = self.table.reward_version
        self.table = replace(self._offered, reward_version=(run_epoch, number + 1))
        self._offered, self._lost_at = None, -math.inf

    def annotator_lost(self) -> None:
        """The annotator has died; its table stays in use."""
        self.known = self._offered = None
        self._lost_at = time.monotonic()


class LatestGoals:
    """`goals` are those in use; None until some have come."""

    def __init__(self) -> None:
        self.goals: PublishedGoals | None = None
        self.known: Version | None = None
        """The annotator's own version of them; None after its end, since its successor's versions restart."""

    def offer(self, goals: PublishedGoals | None) -> None:
        """Use the newest goals, which have come (None: no newer ones have)."""
        if goals is not None:
            self.known = goals.version
            run_epoch, number = (goals.version[0], 0) if self.goals is None else self.goals.version
            self.goals = replace(goals, version=(run_epoch, number + 1))

    def state_dict(self) -> dict[str, Any]:
        """The goals in use; empty where none have come."""
        return {} if self.goals is None else {each.name: getattr(self.goals, each.name) for each in fields(self.goals)}

    def load_state_dict(self, state: Mapping[str, Any], run_epoch: int) -> None:
        """Use the goals of an earlier start of the run until newer ones come, as the first version of `run_epoch`."""
        if state:
            self.goals = PublishedGoals(**{**state, "texts": tuple(state["texts"]), "version": (run_epoch, 1)})
