"""The goal keeper of a worker: gives each environment one of the run's goals to pursue, and counts what is achieved.

    when                                     an environment is given
    an episode begins                        a goal that is drawn, see below
    its goal is achieved                     the next one of the goal's plan, else one that is drawn
    `patience_steps` have passed since       another one that is drawn, if there is one
    it has none, and a new sheet has come    a goal that is drawn

Drawn is, with the sheet's weights, among the goals that the episode has not achieved yet: the episode's mission, where
that is a goal of the source `missions`; else one suggested in the state, in the scopes that look at suggestions; else
any. Of a goal within a plan, the first one of the plan that is not achieved is given. Where nothing can be drawn, no
goal is given.

Invariant: equal sheets, seeds and steps give equal goals. A goal of a plan is achieved only in a later step than the
one before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from actors.captions import CaptionTracker
from actors.channels import STATE, channel_text
from actors.environments.vector import VectorStep
from actors.goals.counts import GoalCounts
from actors.goals.entry import GOAL, GOAL_SPEC
from actors.goals.sheet import NO_MASK, GoalSheet, goals_in, mask_of, text_key
from actors.rollout import Acknowledgement, Items
from configs.goal_schema import MAX_GOALS, GoalsConfig

NO_GOAL = -1
MISSIONS, MISSION_CHANNEL = "missions", "mission"
"""The source of goals that environments give, and the channel that reports them."""


class GoalKeeper:
    """The goals of B environments' running episodes."""

    def __init__(self, config: GoalsConfig, num_envs: int, *, seed: int) -> None:
        """`seed` is for drawing goals only."""
        self._reads = config.reads
        self._looks_at_suggestions = config.scope in ("suggested", "current")
        self._patience, self._num_envs = config.patience_steps, num_envs
        self._rng = np.random.default_rng(seed)
        self._sheet: GoalSheet | None = None
        self._weights = np.zeros(MAX_GOALS)
        self._plans: dict[int, list[int]] = {}  # of goals that are not the first of one
        self._known: dict[int, int] = {}  # text key -> goal
        self._goals = np.full(num_envs, NO_GOAL)
        self._steps = np.zeros(num_envs, np.int64)  # since the goal was given
        self._is_new = np.zeros(num_envs, bool)  # given, and not acted on yet
        self._is_due = np.zeros(num_envs, bool)  # without a goal since before the sheet came
        self._achieved = np.zeros((num_envs, len(NO_MASK)), np.uint64)  # in the running episode, as masks
        self._mission_keys = np.zeros(num_envs, np.uint64)  # 0: none
        self._missions = CaptionTracker(num_envs, channel_text) if MISSIONS in config.sources else None
        self._counts, self._ended = GoalCounts.zeros(), [0, 0]  # since the last report; failures and successes

    @property
    def entries(self) -> np.ndarray:
        """[B] i16: the goals as observed."""
        return (self._goals + 1).astype(GOAL_SPEC.dtype)

    def take_sheet(self, sheet: GoalSheet) -> bool:
        """Use this sheet from the next step on; whether it is another one than before."""
        if self._sheet is not None and sheet.version == self._sheet.version:
            return False
        self._sheet, number = sheet, len(sheet.texts)
        self._weights = np.where(np.arange(MAX_GOALS) < number, sheet.sampling, 0.0)
        self._plans = {goal: sheet.plan_of(goal) for goal in range(number) if sheet.before[goal] >= 0}
        self._known = {text_key(text): goal for goal, text in enumerate(sheet.texts)}
        self._is_due |= self._goals == NO_GOAL
        return True

    def begin(self, states: np.ndarray | None, missions: Sequence[bytes] | None) -> None:
        """New episodes have begun everywhere: in these states ([B] u64, None where they are not described), with these
        missions (raw; None where the environments give none)."""
        for i in range(self._num_envs):
            self._begin(i, _at(states, i), None if missions is None else missions[i])

    def step(
        self,
        rows: slice,
        step: VectorStep,
        items: Mapping[str, np.ndarray],
        returns: np.ndarray,
        states: np.ndarray | None,
        missions: Sequence[bytes] | None,
    ) -> None:
        """A step of the environments `rows`, N of them, led to `items`, by channel [N] u64.

        Writes the goals to pursue into `step`, also into the last observations of episodes that ended, if it has the
        entry. `returns` [B]: of the episodes, this step included; `states` [B] and `missions` [N]: as they are after
        resets, see `begin`.
        """
        self._steps[rows] += 1
        if self._is_new[rows].any():
            begun = self._goals[rows][self._is_new[rows]]
            np.add.at(self._counts.attempted, begun, 1)
            self._is_new[rows] = False
        if self._sheet is not None:
            reached = items.get(STATE)
            self._note_items(self._sheet, rows.start, items[self._reads], reached)
            self._give_others(rows, reached)
        is_read = GOAL in step.obs
        for end in step.ends:
            i = rows.start + end.index
            if is_read:
                end.final_obs[GOAL] = self.entries[i]
            success = end.info.get("success", float(returns[i]) > 0)
            self._end(i, success=bool(success))
        for n in (*(end.index for end in step.ends), *step.losses):
            i = rows.start + n
            self._begin(i, _at(states, i), None if missions is None else missions[n])
        if is_read:
            step.obs[GOAL][:] = self.entries[rows]

    def report(self, sequence_number: int) -> tuple[GoalCounts, dict[str, Items]]:
        """What was counted since the last report; and the missions of the episodes that began, as a channel, if they
        are a source of goals."""
        failures, successes = self._ended
        counts = replace(self._counts, failures=failures, successes=successes)
        self._counts, self._ended = GoalCounts.zeros(), [0, 0]
        missions = self._missions
        return counts, {} if missions is None else {MISSION_CHANNEL: missions.report(sequence_number)}

    def acknowledge(self, acknowledgement: Acknowledgement) -> None:
        """Stop sending missions that the book holds."""
        if self._missions is not None:
            self._missions.acknowledge(acknowledgement)

    def state_dict(self) -> dict[str, Any]:
        """State, between two rollouts, from which the same goals are given if the same sheet is taken first."""
        state = {name: getattr(self, f"_{name}").copy() for name in SAVED}
        missions = {} if self._missions is None else {"missions": self._missions.state_dict()}
        return {**state, "rng": self._rng.bit_generator.state, **missions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name in SAVED:
            getattr(self, f"_{name}")[:] = state[name]
        self._rng.bit_generator.state = state["rng"]
        if self._missions is not None:
            self._missions.load_state_dict(state["missions"])

    def _note_items(self, sheet: GoalSheet, first: int, items: np.ndarray, reached: np.ndarray | None) -> None:
        masks = sheet.achieved_by(items) & ~self._achieved[first : first + len(items)]
        for n in np.flatnonzero(masks.any(axis=1)).tolist():  # the few steps that achieve anything
            i, goal = first + n, int(self._goals[first + n])
            new = goals_in(masks[n])
            if self._plans:
                new &= (sheet.before < 0) | self._done(i)[sheet.before]
            self._achieved[i] |= mask_of(new)
            self._counts.achieved[new] += 1
            if goal != NO_GOAL and new[goal]:
                self._counts.given_achieved[goal] += 1
                self._give(i, self._draw(i, _at(reached, n), after=goal))

    def _give_others(self, rows: slice, reached: np.ndarray | None) -> None:
        """To environments that pursue a goal for too long, or have waited for one."""
        late = (self._steps[rows] >= (self._patience or np.inf)) & (self._goals[rows] != NO_GOAL)
        for n in np.flatnonzero(late).tolist():
            i, current = rows.start + n, int(self._goals[rows.start + n])
            other = self._draw(i, _at(reached, n), but=current)
            if other in (current, NO_GOAL):
                self._steps[i] = 0
            else:
                self._give(i, other)
        for n in np.flatnonzero(self._is_due[rows]).tolist():
            if self._goals[rows.start + n] == NO_GOAL:
                self._give(rows.start + n, self._draw(rows.start + n, _at(reached, n)))
        self._is_due[rows] = False

    def _begin(self, i: int, state: int, mission: bytes | None) -> None:
        self._achieved[i], self._is_due[i] = 0, False
        if self._missions is not None:
            if mission is None:
                raise ValueError(f"goals.sources: got {MISSIONS}, but the environment states none (MiniGrid's do)")
            self._missions.restart(i, b"")
            self._missions.observe([mission], i)
            self._mission_keys[i] = text_key(channel_text(mission))
        self._give(i, self._draw(i, state))

    def _end(self, i: int, *, success: bool) -> None:
        counts, achieved = self._counts, self._done(i)
        (counts.achieved_in_successes if success else counts.achieved_in_failures)[achieved] += 1
        self._ended[int(success)] += 1

    def _give(self, i: int, goal: int) -> None:
        self._goals[i], self._steps[i], self._is_new[i] = goal, 0, goal != NO_GOAL

    def _draw(self, i: int, state: int, *, after: int = NO_GOAL, but: int = NO_GOAL) -> int:
        """A goal for environment `i` in this state (0: not described): one that follows `after` if there is any, and
        drawn not to be `but`."""
        if self._sheet is None:
            return NO_GOAL
        done = self._done(i)
        open_ = np.where(done, 0.0, self._weights)
        if but != NO_GOAL:
            open_[but] = 0.0
        if after != NO_GOAL:
            followers = [goal for goal, plan in self._plans.items() if after in plan[:-1]]
            if (goal := self._choose(done, open_, followers)) != NO_GOAL:
                return goal
        mission = self._known.get(int(self._mission_keys[i]), NO_GOAL) if self._missions is not None else NO_GOAL
        if mission not in (NO_GOAL, but) and not done[mission]:
            return self._first(done, mission)
        if self._looks_at_suggestions and state:
            suggested = goals_in(self._sheet.suggested_in(np.array([state], np.uint64))[0]).nonzero()[0]
            if (goal := self._choose(done, open_, suggested)) != NO_GOAL:
                return goal
        return self._choose(done, open_, np.arange(MAX_GOALS))

    def _choose(self, done: np.ndarray, weights: np.ndarray, among: Sequence[int] | np.ndarray) -> int:
        """One of the goals `among`, drawn with `weights`, or what its plan wants first; NO_GOAL if all weights are
        0."""
        upper_ends = np.cumsum(weights[among]) if len(among) else np.zeros(1)
        if upper_ends[-1] <= 0:
            return NO_GOAL
        # A draw lies in the interval of one goal; a goal of weight 0 has an empty one.
        place = np.searchsorted(upper_ends, self._rng.random() * upper_ends[-1], side="right")
        return self._first(done, int(among[min(int(place), len(among) - 1)]))

    def _first(self, done: np.ndarray, goal: int) -> int:
        """The first goal that is not done of the plan of one that is not."""
        return next(each for each in self._plans.get(goal, [goal]) if not done[each])

    def _done(self, i: int) -> np.ndarray:
        """[256] bool: the goals that the running episode has achieved."""
        return goals_in(self._achieved[i])


SAVED = ("goals", "steps", "is_new", "is_due", "achieved", "mission_keys")
"""Arrays [B, ...] of a keeper's state."""


def _at(ids: np.ndarray | None, i: int) -> int:
    return 0 if ids is None else int(ids[i])
