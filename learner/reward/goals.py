"""The payment `goals`: what a step earns for the goals that it achieves. With k the coefficient and w_g the weight of a
goal, a step earns k times the sum of w_g over the goals g that

    its item achieves                              `RewardTable.goals`
    are in their turn, if they are part of a plan  the one before g was achieved, in its turn too, by an earlier step of
                                                   the episode, paid or not; as `actors.goals.keeper` gives them
    are allowed                                    scope `any`; `suggested` in the state before the action (ELLM, Du et
                                                   al. 2023, arXiv 2302.06692); the `current` one of the policy
    were not paid in the episode                   with `once`

With `neutralise` the end of an episode that succeeded and terminated, step T, pays back -sum_{k <= T} b_k gamma^(k-T),
with b_k what step k earned (ELLA, Mirchandani et al. 2021, arXiv 2103.05825): its return is the task's own. Where an
episode was truncated nothing is taken back, because to the policy it goes on.

Invariant: a step whose item is unknown earns nothing and achieves nothing; which goals a step is paid for depends on
what the newest table and goals say of its own item and state, and of those of the episode's earlier steps at the time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.goals.sheet import look_up_masks
from actors.rollout import Rollout
from configs.goal_schema import MAX_GOALS, GoalsConfig
from configs.reward_schema import TermConfig
from learner.reward.episode_rewards import outcomes
from learner.reward.payments import PaidGoals, StepRewards, signal
from reward_models.goals.masks import WORDS, masks_from, numbers_of
from reward_models.goals.published import PublishedGoals
from reward_models.table import RewardTable

TAKEN_BACK = MAX_GOALS
"""In place of a goal in `PaidGoals`: what `neutralise` takes back."""
MAX_TAKEN_BACK = 1e6
"""The most that one step takes back: gamma^(k-T) grows without limit with the episode's length."""
EVERY_GOAL = -1
"""As a set of goals: an int whose bits are all 1. Here a set of goals is an int with bit g for goal g."""


@dataclass(slots=True)
class _Episode:
    """What is known of a running episode in which a goal was achieved."""

    in_turn: int = 0  # goals achieved, of a plan in their turn
    paid: int = 0  # goals
    owed: float = 0.0  # sum_k b_k gamma^(k - at)
    at: int = 0  # a step, counted from the start of the worker's next rollout

    def owed_at(self, step: int, gamma: float) -> float:
        """The sum at a later step, at most `MAX_TAKEN_BACK` in absolute value."""
        growth = math.exp(min((self.at - step) * math.log(gamma), 700.0))
        return max(-MAX_TAKEN_BACK, min(self.owed * growth, MAX_TAKEN_BACK))


class _Book:
    """`PublishedGoals` in the form in which single steps read it; of none where none is published yet."""

    def __init__(self, goals: PublishedGoals | None) -> None:
        self._before = [-1] * MAX_GOALS if goals is None else goals.before.tolist()
        self._later = sum(1 << goal for goal, earlier in enumerate(self._before) if earlier >= 0)  # come after others
        self.weights = [0.0] * MAX_GOALS if goals is None else goals.weights.tolist()

    def achieve(self, achieved: int, in_turn: int) -> int:
        """`in_turn` with those of the goals `achieved` that need none before them, or one that is in it already."""
        new = achieved & ~in_turn
        for goal in _members(new & self._later):
            if not in_turn >> self._before[goal] & 1:
                new ^= 1 << goal
        return in_turn | new


class Goals:
    """See the module; `gamma` of the term is the learner's."""

    def __init__(self, term: TermConfig, goals: GoalsConfig) -> None:
        """Raises ValueError for `neutralise` without discount factor."""
        if goals.neutralise and term.gamma <= 0:
            raise ValueError(
                f"goals.neutralise: got true with learner.gamma={term.gamma:g}, wanted learner.gamma above 0: what was"
                " paid is divided by its powers"
            )
        self._term, self._goals = term, goals
        self._episodes: dict[str, dict[int, _Episode]] = {}  # by worker index and environment

    def pay(self, rollout: Rollout, table: RewardTable, goals: PublishedGoals | None = None) -> StepRewards:
        """See `Payment`."""
        items = signal(rollout, self._term.reads)
        known, places, masks = table.find_goals(items)
        sets, allowed = numbers_of(masks), self._allowed(rollout, goals, places)
        achieved = dict(zip(places.tolist(), zip(sets, allowed, strict=True), strict=True))
        parts, amounts = self._parts(rollout, achieved, _Book(goals))
        rewards = np.zeros(items.shape)
        np.add.at(rewards, (parts[:, 0], parts[:, 1]), amounts)
        return StepRewards(rewards.astype(np.float32), items, known, _shares(parts, amounts, rewards))

    def _allowed(self, rollout: Rollout, goals: PublishedGoals | None, places: np.ndarray) -> Sequence[int]:
        """The set of goals that may be paid at each of `places` [E], steps x environments in one axis."""
        if self._goals.scope == "any":
            return [EVERY_GOAL] * len(places)
        if self._goals.scope == "suggested":
            states = signal(rollout, "state_before").ravel()[places]
            if goals is None:
                return [0] * len(places)
            return numbers_of(look_up_masks(goals.suggested_ids, goals.suggested, states))
        if "goal" not in rollout.obs:
            raise RuntimeError(
                f"rollout {rollout.sequence_number} of worker {rollout.worker_id} does not say which goal was pursued,"
                " but goals.scope=current pays that one: the worker runs without policy.reads_goal; stop it"
            )
        return [1 << goal >> 1 for goal in rollout.obs["goal"][:-1].ravel()[places].tolist()]

    def _parts(
        self, rollout: Rollout, achieved: Mapping[int, tuple[int, int]], book: _Book
    ) -> tuple[np.ndarray, np.ndarray]:
        """The parts [E, 3] (step, environment, goal or TAKEN_BACK) of which rewards are sums, and their amounts [E].
        `achieved` are the sets of goals achieved and allowed, by place."""
        num_steps, num_envs = rollout.actions.shape
        ends = set(np.flatnonzero(rollout.terminated | rollout.truncated).tolist())
        succeeded = {
            (t, env) for t, finished in outcomes(rollout).items() for env, is_success in finished if is_success
        }
        k, gamma, neutralise = self._term.coefficient, self._term.gamma, self._goals.neutralise
        episodes = self._episodes.setdefault(rollout.worker_id.partition(".")[0], {})
        if rollout.sequence_number == 0:  # a new worker's episodes have just begun
            episodes.clear()
        parts: list[tuple[int, int, int]] = []
        amounts: list[float] = []
        for place in sorted(ends.union(achieved)):
            t, env = divmod(place, num_envs)
            episode = episodes.get(env)
            if place in achieved:
                if episode is None:
                    episode = episodes[env] = _Episode()
                earned = 0.0
                for goal in self._due(episode, *achieved[place], book):
                    parts.append((t, env, goal))
                    amounts.append(k * book.weights[goal])
                    earned += amounts[-1]
                if earned and neutralise:
                    episode.owed, episode.at = episode.owed_at(t, gamma) + earned, t
            if place in ends and episode is not None:
                if neutralise and rollout.terminated[t, env] and (t, env) in succeeded:
                    parts.append((t, env, TAKEN_BACK))
                    amounts.append(-episode.owed_at(t, gamma))
                del episodes[env]
        for episode in episodes.values():
            episode.at -= num_steps
        return np.array(parts, np.int64).reshape(-1, 3), np.array(amounts, np.float64)

    def _due(self, episode: _Episode, achieved: int, allowed: int, book: _Book) -> list[int]:
        """The goals that a step is paid for."""
        if self._goals.once and not achieved & ~episode.paid:
            return []
        episode.in_turn = book.achieve(achieved, episode.in_turn)
        due = achieved & allowed & episode.in_turn
        if self._goals.once:
            due &= ~episode.paid
            episode.paid |= due
        return _members(due)

    def state_dict(self) -> dict[str, Any]:
        """Running episodes by worker index: `envs` [E] i64, `masks` [E, 8] u64 (in turn, paid), `owed` [E] f64 and `at`
        [E] i64."""
        return {index: _as_arrays(episodes) for index, episodes in self._episodes.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._episodes = {}
        for index, arrays in state.items():
            in_turn, paid = (numbers_of(masks) for masks in np.split(arrays["masks"], 2, axis=1))
            fields = zip(in_turn, paid, arrays["owed"].tolist(), arrays["at"].tolist(), strict=True)
            self._episodes[index] = dict(zip(arrays["envs"].tolist(), (_Episode(*row) for row in fields), strict=True))


def _as_arrays(episodes: Mapping[int, _Episode]) -> dict[str, np.ndarray]:
    masks = [masks_from([episode.in_turn, episode.paid]).ravel() for episode in episodes.values()]
    return {
        "envs": np.array([*episodes], np.int64),
        "masks": np.array(masks, np.uint64).reshape(-1, 2 * WORDS),
        "owed": np.array([episode.owed for episode in episodes.values()], np.float64),
        "at": np.array([episode.at for episode in episodes.values()], np.int64),
    }


def _members(goals: int) -> list[int]:
    """The goals of a set."""
    members = []
    while goals:
        members.append((goals & -goals).bit_length() - 1)
        goals &= goals - 1
    return members


def _shares(parts: np.ndarray, amounts: np.ndarray, rewards: np.ndarray) -> PaidGoals:
    """What each of `amounts` [E] is of its step's reward, where that is not 0."""
    steps, envs, goals = parts.T
    totals = rewards[steps, envs]
    counts = (totals != 0) & (amounts != 0)
    return PaidGoals(steps[counts], envs[counts], goals[counts], amounts[counts] / totals[counts])
