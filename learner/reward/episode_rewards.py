"""Rewards that depend on the running episode or on finished ones: goals paid once per episode (`unpaid`), the cap on
what a term pays in an episode (`EpisodeCap`), the trust in a term (`Trust`, `EarnedTrust`), and the cap on the share
of intrinsic reward in the total, `reward.max_intrinsic_share` (`ShareCap`).

Let I be the mean over finished episodes of sum_t |intrinsic reward|, and E the mean of sum_t max(0, k_ext clip(s
r_env)) over the finished episodes in which that sum was not 0 (a penalty for every step is no success); both are
running means with a decay of 0.99 per episode. With a cap s, intrinsic reward is multiplied by

    scale = min(1, s / (1 - s) * E / I)

so that the intrinsic reward of an average episode is at most the share s of the total with the extrinsic reward of a
rewarded episode. E is averaged over rewarded episodes alone, and scale stays 1 until there is one, because rewards are
sparse: with E over all episodes the first lucky success would switch exploration off.

Invariant: every rollout of a worker is observed in the order in which it was played, dropped rollouts included, so the
state describes the episodes and not the batches.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from actors.rollout import EpisodeStatistics, Rollout

DECAY = 0.99
MIN_OUTCOMES, MIN_TO_EARN = 10, 3
"""Successes and failures, of each as many, before a term's trust is anything but 1, and before a term can earn it."""
SMALLEST_DEVIATION = 1e-4
"""As a share of the means: sums that differ by less are taken for equal ones that were rounded."""
PATIENCE = 30
"""Failures before the first success, and for each further one, after which a task is taken to need its terms."""
SURE = 2.0
"""Standard errors by which successes must be paid more than failures until a term has its whole weight."""


class RunningEpisodes:
    """What is known of each running episode: an array [*shape, B] per worker, set to `start` where one begins."""

    def __init__(self, dtype: DTypeLike, *shape: int, start: float = 0) -> None:
        self._dtype, self._shape, self._start = dtype, shape, start
        self._arrays: dict[str, np.ndarray] = {}  # by worker index

    def walk(self, rollout: Rollout) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each step t, the worker's array, to be updated in place, and which of its episodes end [B] bool."""
        index, done = rollout.worker_id.partition(".")[0], rollout.terminated | rollout.truncated
        if rollout.sequence_number == 0 or index not in self._arrays:  # a new worker's episodes have just begun
            self._arrays[index] = np.full((*self._shape, done.shape[1]), self._start, self._dtype)
        array = self._arrays[index]
        for t, ends in enumerate(done):
            yield t, array, ends
            array[..., ends] = self._start

    def state_dict(self) -> dict[str, Any]:
        """Copies of the arrays by worker index."""
        return {index: array.copy() for index, array in self._arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._arrays = {index: np.array(array) for index, array in state.items()}


def succeeded(episode: EpisodeStatistics) -> bool:
    """Whether it was a success: by the environment's own `success` if it reports one, else by a positive return."""
    return episode.info.get("success", episode.episode_return) > 0


def outcomes(rollout: Rollout) -> Mapping[int, list[tuple[int, bool]]]:
    """By step: the environments whose episode finished in it, and whether it was a success."""
    finished: dict[int, list[tuple[int, bool]]] = defaultdict(list)
    for (t, env), episode in zip(rollout.episode_ends, rollout.episodes, strict=True):
        finished[t].append((env, succeeded(episode)))
    return finished


def unpaid(paid_goals: RunningEpisodes, rollout: Rollout, bits: np.ndarray) -> np.ndarray:
    """[T, B] bool: False where a step reaches a goal already paid in the episode; updates the bitmasks. `bits` [T, B]
    u64 are the goals reached."""
    is_unpaid = np.empty(bits.shape, bool)
    for t, paid, _ in paid_goals.walk(rollout):
        is_unpaid[t] = (paid & bits[t]) == 0
        paid |= bits[t]
    return is_unpaid


class EpisodeCap:
    """Cuts rewards where the sum of their absolute values in an episode would exceed `cap`."""

    def __init__(self, cap: float) -> None:
        self._cap = cap
        self._running = RunningEpisodes(np.float64)  # sums of |reward|

    def cut(self, rollout: Rollout, rewards: np.ndarray) -> np.ndarray:
        """`rewards` [T, B] f32 of a worker's next rollout, cut to fit."""
        amounts, allowed = np.abs(rewards), np.empty(rewards.shape, np.float64)
        for t, paid, _ in self._running.walk(rollout):
            np.minimum(amounts[t], self._cap - paid, out=allowed[t])
            np.minimum(paid + amounts[t], self._cap, out=paid)
        return np.copysign(allowed, rewards).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Running sums."""
        return self._running.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._running.load_state_dict(state)


@dataclass
class _Outcomes:
    """What a term paid in the episodes of one outcome, with a decay of 0.99 per episode."""

    number: int = 0  # of episodes
    weight: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # weighted sum of squared deviations from the mean

    def add(self, value: float) -> None:
        """Count an episode (West 1979)."""
        self.number += 1
        self.weight = DECAY * self.weight + 1.0
        deviation = value - self.mean
        self.mean += deviation / self.weight
        self.squares = DECAY * self.squares + deviation * (value - self.mean)


class Trust:
    """The weight of a term by the outcomes of the episodes that it paid for, after the trustworthiness weight of
    Trust-GRPO (SophiaVL-R1, Fan et al. 2025, arXiv 2505.17018). Let mu+ and mu- be the means of its summed reward over
    episodes with and without success, and s their pooled standard deviation:

        weight = min(1, exp((mu+ - mu-) / s))       1 until there are ten episodes of each

    There the weight is 1 where mu+ >= mu-, else exp(mu+ - mu-), with the means of one prompt's right and wrong answers,
    whose rewards lie in [0, 1]. Ours are the running means over episodes (an episode of an environment has no group),
    the division by s (sums of rewards have no scale of their own) and the ten episodes.

    The sums are those of what the term would pay with the weight 1, without annealing and cap, because a weight that
    changed its own evidence would never settle. Success is the environment's own `success` if it reports one, else a
    positive return.
    """

    min_outcomes = MIN_OUTCOMES

    def __init__(self) -> None:
        self._outcomes = _Outcomes(), _Outcomes()  # of failures, of successes
        self._running = RunningEpisodes(np.float64)  # sums of rewards

    @property
    def weight(self) -> float:
        """The factor on the term, in [0, 1]."""
        difference = self._difference
        return 1.0 if difference is None or difference >= 0 else math.exp(difference)

    @property
    def _difference(self) -> float | None:
        """(mu+ - mu-) / s; None while there are too few episodes."""
        failures, successes = self._outcomes
        difference = successes.mean - failures.mean
        if min(failures.number, successes.number) < self.min_outcomes:
            return None
        if not difference:
            return 0.0
        deviation = math.sqrt((failures.squares + successes.squares) / (failures.weight + successes.weight))
        return difference / max(deviation, SMALLEST_DEVIATION * (abs(failures.mean) + abs(successes.mean)))

    def observe(self, rollout: Rollout, rewards: np.ndarray) -> None:
        """Add the rewards [T, B] of a worker's next rollout, at weight 1. An episode without statistics did not finish
        (its environment was lost), and has no outcome."""
        finished = outcomes(rollout)
        for t, sums, _ in self._running.walk(rollout):
            sums += rewards[t]
            for env, is_success in finished.get(t, ()):
                self._note(is_success, float(sums[env]))

    def _note(self, is_success: bool, total: float) -> None:
        """An episode has ended, over which the term's rewards sum to `total`."""
        self._outcomes[is_success].add(total)

    def state_dict(self) -> dict[str, Any]:
        """Means, and running sums."""
        return {"outcomes": [asdict(outcomes) for outcomes in self._outcomes], "running": self._running.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        failures, successes = state["outcomes"]
        self._outcomes = _Outcomes(**failures), _Outcomes(**successes)
        self._running.load_state_dict(state["running"])


class EarnedTrust(Trust):
    """A weight that starts at 0: the task is played without the term until its outcomes speak for the term. With three
    episodes of each outcome, mu+, mu- and s as in `Trust`, and n the decayed numbers of episodes:

        weight = clip((mu+ - mu-) / (2 e), 0, 1)      e = s sqrt(1 / n+ + 1 / n-)

    so a term has its whole weight where the lower 97.5 % confidence bound of mu+ - mu- is positive, and none where it
    pays failures as much as successes. Before that the weight is 0, unless the task needs its terms, because hardly any
    episode succeeds without them: from 30 (k + 1) failures beside k successes on it is 1, until there are three of
    each. Then a term that prevents successes is not found out, as with `Trust`.
    """

    min_outcomes = MIN_TO_EARN

    def __init__(self) -> None:
        super().__init__()
        self._is_needed = False

    @property
    def weight(self) -> float:
        """The factor on the term, in [0, 1]."""
        difference = self._difference
        if difference is None:
            return float(self._is_needed)
        error = math.sqrt(sum(1 / outcomes.weight for outcomes in self._outcomes))
        return min(max(difference / (SURE * error), 0.0), 1.0)

    def _note(self, is_success: bool, total: float) -> None:
        super()._note(is_success, total)
        failures, successes = self._outcomes
        self._is_needed |= failures.number >= PATIENCE * (successes.number + 1)

    def state_dict(self) -> dict[str, Any]:
        """Means, running sums, and whether the task needs the term."""
        return {**super().state_dict(), "is_needed": self._is_needed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        self._is_needed = state["is_needed"]


TRUSTS: Mapping[str, type[Trust]] = {"outcome": Trust, "earned": EarnedTrust}
"""By `terms.NAME.trust`."""


class ShareCap:
    """The current scale, and the reward sums of running episodes by worker and environment."""

    def __init__(self, max_share: float) -> None:
        self._ratio = max_share / (1.0 - max_share) if max_share < 1.0 else np.inf
        self._intrinsic, self._extrinsic = [0.0, 0.0], [0.0, 0.0]  # weighted sum and weight, over episodes
        self._running = RunningEpisodes(np.float64, 2)  # sums of |intrinsic| and of positive extrinsic reward

    @property
    def scale(self) -> float:
        """The factor on intrinsic reward, in [0, 1]."""
        if not self._extrinsic[1] or not self._intrinsic[0] or np.isinf(self._ratio):
            return 1.0
        intrinsic, extrinsic = self._intrinsic[0] / self._intrinsic[1], self._extrinsic[0] / self._extrinsic[1]
        return min(1.0, self._ratio * extrinsic / intrinsic)

    def observe(self, rollout: Rollout, intrinsic: np.ndarray, extrinsic: np.ndarray) -> None:
        """Add the uncapped rewards [T, B] of a worker's next rollout."""
        rewards = np.stack([np.abs(intrinsic), np.maximum(extrinsic, 0)], 1).astype(np.float64)  # [T, 2, B]
        for t, running, ends in self._running.walk(rollout):
            running += rewards[t]
            for of_intrinsic, of_extrinsic in running[:, ends].T.tolist():
                _add(self._intrinsic, of_intrinsic)
                if of_extrinsic:
                    _add(self._extrinsic, of_extrinsic)

    def state_dict(self) -> dict[str, Any]:
        """Means and running sums."""
        means = {"intrinsic": list(self._intrinsic), "extrinsic": list(self._extrinsic)}
        return {**means, "running": self._running.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._intrinsic, self._extrinsic = list(state["intrinsic"]), list(state["extrinsic"])
        self._running.load_state_dict(state["running"])


def _add(mean: list[float], value: float) -> None:
    mean[0] = DECAY * mean[0] + value
    mean[1] = DECAY * mean[1] + 1.0
