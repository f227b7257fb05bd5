"""How a term's numbers become rewards, by `terms.NAME.pays`. With k the term's coefficient, v the number that its table
has for an item, and n the occurrence in the episode:

    event        k v(item) / n^beta              ONI section 2; goals that are paid once an episode (`unpaid`) only once
    potential    k (gamma v(after) - v(before))  leaves the optimal policy as it is (Ng, Harada and Russell 1999);
                                                 v(after) = 0 where the episode terminated, kept where it was truncated
    improvement  k max(0, v(after) - m)          m: the largest v of the episode so far, the state before the action
                                                 included; where m is unknown, its first value pays nothing
    goals                                        see `goals.py`
    visits       k / sqrt(visits of the bin)     ProgressCounts (Sarukkai et al. 2024, arXiv 2410.09187); v(after),
                                                 clipped to [0, 1], lies in one of `bins` bins of equal width

Invariant: a step whose item is unknown, or empty, earns nothing, moves no maximum and is no visit. Only `potential`
gives the empty item its value of 0, and the end of an episode that terminated is known to it: it leaves the optimal
policy as it is only if every state has a value. `potential` reads both values in one table, so a new table leaks v(new)
- v(old) once; a new table that values a state more highly pays `improvement` nothing for the state that one is in.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from actors.rollout import Rollout
from configs.reward_schema import TermConfig
from learner.reward.episode_rewards import RunningEpisodes, unpaid
from reward_models.goals.published import PublishedGoals
from reward_models.table import RewardTable

EMPTY = np.uint64(0)
"""Id of the empty item, which every table knows, with the value 0."""


class PaidGoals(NamedTuple):
    """Which goals the steps of a term are paid for: E parts of rewards, those of a step summing to 1."""

    steps: np.ndarray  # [E] int
    envs: np.ndarray  # [E] int
    goals: np.ndarray  # [E] int
    shares: np.ndarray  # [E] f64, of the step's reward

    @staticmethod
    def joined(rollouts: Sequence["PaidGoals | None"], widths: Sequence[int]) -> "PaidGoals | None":
        """Those of rollouts of `widths` environments, joined along the environments; None without goals."""
        told = [one for one in rollouts if one is not None]
        if not told:
            return None
        firsts = np.cumsum([0, *widths]).tolist()
        moved = [one._replace(envs=one.envs + first) for one, first in zip(told, firsts, strict=False)]
        return PaidGoals(*map(np.concatenate, zip(*moved, strict=True)))


class StepRewards(NamedTuple):
    """Rewards of T steps of B environments."""

    rewards: np.ndarray  # [T, B] f32
    items: np.ndarray  # [T, B] u64: the item that the step is paid for; an unknown one pays nothing
    known: np.ndarray  # [T, B] bool: whether the table has what the step's reward depends on
    goals: PaidGoals | None = None
    components: np.ndarray | None = None  # [T, B, C] f32: of a program's number; 0 where one is not known


class Valued(NamedTuple):
    """What is said of the state that each step led to, or of the one before it; [T, B] each."""

    values: np.ndarray  # f32; 0 where it is not known
    known: np.ndarray  # bool
    items: np.ndarray  # u64: what is valued
    is_real: np.ndarray  # bool: known, and not the empty item


class Payment(Protocol):
    """Turns a worker's rollouts, given once each and in order, into rewards."""

    def pay(self, rollout: Rollout, table: RewardTable, goals: PublishedGoals | None = None) -> StepRewards:
        """The rewards of a rollout, coefficient included. `goals`, None before the first, matter to `goals` alone."""

    def state_dict(self) -> dict[str, Any]:
        """What is known of running episodes and of the run."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""


class Event:
    """`event`: v / n^beta for the n-th occurrence of an item in an episode."""

    def __init__(self, term: TermConfig) -> None:
        self._term = term
        self._paid_goals = RunningEpisodes(np.uint64)  # a bitmask per episode

    def pay(self, rollout: Rollout, table: RewardTable, goals: PublishedGoals | None = None) -> StepRewards:
        """See `Payment`."""
        items = signal(rollout, self._term.reads)
        values, known = table.look_up(items)
        if table.goals is not None:
            is_due = unpaid(self._paid_goals, rollout, table.look_up_goals(items)[..., 0])
            values = np.where(is_due, values, np.float32(0))
        counts = signal(rollout, f"{self._term.reads}_counts")
        return StepRewards(
            event_rewards(values, counts, self._term.coefficient, self._term.count_exponent), items, known
        )

    def state_dict(self) -> dict[str, Any]:
        """Goals paid."""
        return self._paid_goals.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._paid_goals.load_state_dict(state)


def event_rewards(values: np.ndarray, counts: np.ndarray, coefficient: float, exponent: float) -> np.ndarray:
    """coefficient x values / counts^exponent, f32, of `values` f32 and `counts` i32 of one shape."""
    rewards: np.ndarray = coefficient * values / counts.astype(np.float32) ** np.float32(exponent)
    return rewards.astype(np.float32, copy=False)


class Potential:
    """`potential`: the discounted difference of the values after and before an action. It is paid for the state after,
    and at an episode's end for the empty one."""

    def __init__(self, term: TermConfig) -> None:
        self._term = term

    def pay(self, rollout: Rollout, table: RewardTable, goals: PublishedGoals | None = None) -> StepRewards:
        """See `Payment`."""
        after = np.where(rollout.terminated, EMPTY, signal(rollout, self._term.reads))
        before = signal(rollout, f"{self._term.reads}_before")
        return self.pay_values(rollout, _valued(after, table), _valued(before, table))

    def pay_values(self, rollout: Rollout, after: Valued, before: Valued) -> StepRewards:
        """`pay` of values; those after the end of an episode that terminated are known to be 0."""
        known = after.known & before.known
        difference = np.where(known, self._term.gamma * after.values - before.values, np.float32(0))
        return StepRewards(self._term.coefficient * difference, after.items, known)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a step's reward depends on the step alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is kept."""


class Improvement:
    """`improvement`: by how much the value after an action exceeds the largest of the episode before."""

    def __init__(self, term: TermConfig) -> None:
        self._term = term
        self._maxima = RunningEpisodes(np.float32, start=np.nan)

    def pay(self, rollout: Rollout, table: RewardTable, goals: PublishedGoals | None = None) -> StepRewards:
        """See `Payment`."""
        after, before = (signal(rollout, f"{self._term.reads}{moment}") for moment in ("", "_before"))
        return self.pay_values(rollout, _valued(after, table), _valued(before, table))

    def pay_values(self, rollout: Rollout, after: Valued, before: Valued) -> StepRewards:
        """`pay` of values."""
        reached, left = (np.where(one.is_real, one.values, np.float32(np.nan)) for one in (after, before))
        gains = np.empty_like(reached)
        for t, maxima, _ in self._maxima.walk(rollout):
            np.fmax(maxima, left[t], out=maxima)  # fmax passes over NaN
            np.subtract(reached[t], maxima, out=gains[t])
            np.fmax(maxima, reached[t], out=maxima)
        return StepRewards(self._term.coefficient * np.fmax(gains, np.float32(0)), after.items, after.known)

    def state_dict(self) -> dict[str, Any]:
        """Each running episode's maximum."""
        return self._maxima.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._maxima.load_state_dict(state)


class Visits:
    """`visits`: 1 / sqrt(n) for the n-th visit of a bin, over the run or the episode. Visits of the run are counted in
    the order of the rollouts, of a rollout's steps and of its environments."""

    def __init__(self, term: TermConfig) -> None:
        self._term = term
        self._of_run = np.zeros(term.bins, np.int64)
        self._of_episode = RunningEpisodes(np.int32, term.bins)

    def pay(self, rollout: Rollout, table: RewardTable, goals: PublishedGoals | None = None) -> StepRewards:
        """See `Payment`."""
        after = _valued(signal(rollout, self._term.reads), table)
        return self.pay_values(rollout, after, after)

    def pay_values(self, rollout: Rollout, after: Valued, before: Valued) -> StepRewards:
        """`pay` of values; those before do not matter."""
        values, known, items, is_visit = after
        num_bins = self._term.bins
        bins = np.minimum((np.clip(values, 0, 1) * num_bins).astype(np.int64), num_bins - 1)
        numbers = np.ones(bins.shape, np.int64)
        if self._term.visits_of == "run":
            numbers[is_visit] = self._count_in_run(bins[is_visit])
        else:
            columns = np.arange(bins.shape[1])
            for t, visits, _ in self._of_episode.walk(rollout):
                visits[bins[t], columns] += is_visit[t]
                numbers[t] = np.maximum(visits[bins[t], columns], 1)
        rewards = np.where(is_visit, self._term.coefficient / np.sqrt(numbers), 0)
        return StepRewards(rewards.astype(np.float32), items, known)

    def _count_in_run(self, bins: np.ndarray) -> np.ndarray:
        """The number [N] of each visit of `bins` [N], itself included."""
        sizes = np.bincount(bins, minlength=len(self._of_run))
        order, firsts = np.argsort(bins, kind="stable"), np.cumsum(sizes) - sizes
        numbers = np.empty(len(bins), np.int64)
        numbers[order] = np.arange(1, len(bins) + 1) + np.repeat(self._of_run - firsts, sizes)
        self._of_run += sizes
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """Visits by bin, of the run and of running episodes."""
        return {"run": self._of_run.copy(), "episodes": self._of_episode.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._of_run = np.array(state["run"])
        self._of_episode.load_state_dict(state["episodes"])


OF_VALUES: Mapping[str, type[Potential] | type[Improvement] | type[Visits]] = {
    "potential": Potential,
    "improvement": Improvement,
    "visits": Visits,
}
"""By `terms.NAME.pays`, what pays any values of states."""
PAYMENTS: Mapping[str, Callable[[TermConfig], Payment]] = {"event": Event, **OF_VALUES}
"""By `terms.NAME.pays`, for judged terms."""


def signal(rollout: Rollout, name: str) -> np.ndarray:
    """[T, B]: `C`, `C_counts` or `C_before` of a channel C. Raises RuntimeError where the worker did not collect it."""
    signals = {"caption": rollout.caption_ids, "caption_counts": rollout.caption_counts, **rollout.signals}
    if name not in signals:
        raise RuntimeError(
            f"rollout {rollout.sequence_number} of worker {rollout.worker_id} has the signals {', '.join(signals)},"
            f" but a term of the reward reads {name}: the worker runs with other terms; stop it"
        )
    return signals[name]


def _valued(items: np.ndarray, table: RewardTable) -> Valued:
    values, known = table.look_up(items)
    return Valued(values, known, items, known & (items != EMPTY))
