"""The sum of many terms, step by step as its formulas say, to which the learner's arrays are held; and rollouts with
all that happens to them: ends, truncations, lost environments, several workers."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.rollout import EpisodeStatistics, Rollout
from configs.goal_schema import GoalsConfig
from configs.reward_schema import RewardConfig, TermConfig
from tests.learner.toy_rollouts import random_rollout

ITEMS = np.array([0, 11, 12, 13, 14, 15, 2**63 + 1], np.uint64)
"""Of every channel; 0 is the empty one."""
CHANNELS = ("caption", "state", "change")
FEATURES = ("height", "gold")
PROGRAMS: Mapping[str, Callable[..., float]] = {
    """
def reward(before, after, start, action):
    if after.gold > before.gold:
        found = 1.0
    else:
        found = 0.0
    return {"rise": after.height - start.height, "found": found - 0.1 * (action == 1)}
""": lambda before, after, start, action: (
        after["height"] - start["height"] + (after["gold"] > before["gold"]) - 0.1 * (action == 1)
    ),
    "state.height + 0.5 * (state.gold > 0.5)": lambda state: state["height"] + 0.5 * (state["gold"] > 0.5),
}
"""Texts of programs, and what they compute for one step."""
REWARD_PROGRAM, PROGRESS_PROGRAM = PROGRAMS
Values = Mapping[int, float]
"""A table: item id -> value."""


class _Environment:
    """Random items of every channel, in episodes."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.begin()

    def begin(self) -> None:
        """A new episode, whose reset shows a state."""
        self.total, self.length, self.state = 0.0, 0, self._rng.choice(ITEMS)
        self.start = self.features = self._look()
        self._counts = {channel: Counter[int]() for channel in CHANNELS}
        self._counts["state"][int(self.state)] += 1

    def step(self, reward: float) -> dict[str, Any]:
        """The signals of one step."""
        signals: dict[str, Any] = {"state_before": self.state}
        for channel, counts in self._counts.items():
            signals[channel] = self._rng.choice(ITEMS)
            counts[int(signals[channel])] += 1
            signals[f"{channel}_counts"] = np.int32(counts[int(signals[channel])])
        signals["features_start"], signals["features_before"] = self.start, self.features
        signals["features"] = self.features = self._look()
        self.state = signals["state"]
        self.total, self.length = self.total + reward, self.length + 1
        return signals

    def _look(self) -> np.ndarray:
        features = self._rng.uniform(-0.5, 1.5, len(FEATURES)).astype(np.float32)
        return np.where(self._rng.random(len(FEATURES)) < 0.05, np.float32(np.nan), features)


def played_rollouts(worker: str, number: int, *, seed: int, num_steps: int = 12, num_envs: int = 4) -> list[Rollout]:
    """A worker's rollouts in order. Channels are random items; their counts, and the state before each action, are
    those of the episode. Now and then an environment is lost in the middle of a rollout."""
    rng = np.random.default_rng(seed)
    environments = [_Environment(rng) for _ in range(num_envs)]
    return [_rollout(environments, rng, num_steps, worker, sequence_number) for sequence_number in range(number)]


def _rollout(
    environments: Sequence[_Environment], rng: np.random.Generator, num_steps: int, worker: str, sequence_number: int
) -> Rollout:
    shape = num_steps, len(environments)
    rewards = np.where(rng.random(shape) < 0.1, 3.0, -0.01).astype(np.float32)
    terminated = rng.random(shape) < 0.15
    truncated = ~terminated & (rng.random(shape) < 0.15)
    lost = (int(rng.integers(shape[1])),) if rng.random() < 0.2 else ()
    lost_at = int(rng.integers(num_steps))
    terminated[lost_at, lost], truncated[lost_at, lost] = False, True
    rows, episodes, ends = [], [], []
    for t in range(num_steps):
        rows.append([env.step(float(rewards[t, i])) for i, env in enumerate(environments)])
        for i in np.flatnonzero(terminated[t] | truncated[t]).tolist():
            if t != lost_at or i not in lost:
                info = {"success": float(rng.random() < 0.5)} if rng.random() < 0.5 else {}
                total, length, is_over = environments[i].total, environments[i].length, bool(terminated[t, i])
                episodes.append(EpisodeStatistics(episode_return=total, length=length, terminated=is_over, info=info))
                ends.append((t, i))
            environments[i].begin()
    signals = {name: np.array([[step[name] for step in row] for row in rows]) for name in rows[0][0]}
    return random_rollout(
        *shape,
        seed=sequence_number,
        caption_ids=signals.pop("caption"),
        caption_counts=signals.pop("caption_counts"),
        signals=signals,
        extrinsic_rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        lost=lost,
        episodes=tuple(episodes),
        episode_ends=tuple(ends),
        worker_id=worker,
        sequence_number=sequence_number,
    )


@dataclass
class Episode:
    """What one term knows of one running episode."""

    maximum: float | None = None
    visits: Counter[int] = field(default_factory=Counter)
    goals: set[int] = field(default_factory=set)  # paid
    in_turn: set[int] = field(default_factory=set)  # goals achieved, of a plan in their turn
    amounts: list[float] = field(default_factory=list)  # paid for goals, by step
    raw: float = 0.0  # sum before trust, annealing and cap
    paid: float = 0.0  # sum of absolute values after them


@dataclass
class SlowGoals:
    """What `PublishedGoals` and the goals of a table say."""

    achieved: Mapping[int, Sequence[int]]  # by item
    weights: Sequence[float]
    before: Sequence[int]
    suggested: Mapping[int, Sequence[int]]  # by state


def _success(rollout: Rollout, t: int, env: int) -> bool | None:
    """Whether an episode that ends there is a success; None if none ends, or its environment was lost."""
    if (t, env) not in rollout.episode_ends:
        return None
    statistics = rollout.episodes[rollout.episode_ends.index((t, env))]
    told = statistics.info.get("success")
    return statistics.episode_return > 0 if told is None else told > 0


class SlowTerm:
    """One term, one step at a time."""

    def __init__(self, config: TermConfig, goals: Mapping[int, int], of_goals: GoalsConfig | None = None) -> None:
        self.config, self.goals, self.of_goals = config, goals, of_goals
        self.book: SlowGoals | None = None
        self.parts: dict[int, float] = {}  # of the last step's reward before all factors, by goal; 256: taken back
        self.by_goal: Counter[int] = Counter()
        self.episodes: dict[tuple[str, int], Episode] = {}
        self.visits_of_run: Counter[int] = Counter()
        self.sums: dict[bool, list[float]] = {False: [], True: []}  # of finished episodes, by success
        self.is_needed = False
        self.env_steps = 0
        self.earned: dict[int, float] = {}  # by item, signed

    def factor(self) -> float:
        """Trust x annealing."""
        config, trust, num = self.config, 1.0, min(len(sums) for sums in self.sums.values())
        if config.trust == "earned" and num < 3:
            trust = float(self.is_needed)
        elif config.trust != "none" and num >= {"outcome": 10, "earned": 3}[config.trust]:
            weights = {g: [0.99 ** (len(s) - 1 - i) for i in range(len(s))] for g, s in self.sums.items()}
            means = {g: sum(np.multiply(weights[g], self.sums[g])) / sum(weights[g]) for g in weights}
            squares = sum(sum(np.multiply(weights[g], np.square(np.subtract(self.sums[g], means[g])))) for g in weights)
            deviation = math.sqrt(squares / sum(sum(w) for w in weights.values()))
            gap = means[True] - means[False]
            difference = gap / deviation if gap else 0.0
            trust = min(1.0, math.exp(difference))
            if config.trust == "earned":
                error = math.sqrt(sum(1 / sum(w) for w in weights.values()))
                trust = min(max(difference / (2 * error), 0.0), 1.0)
        return trust * (math.exp(-self.env_steps / config.anneal_env_steps) if config.anneal_env_steps else 1.0)

    def pay(self, rollout: Rollout, t: int, env: int, values: Values, factor: float) -> tuple[float, bool]:
        """The step's reward, and whether its value was unknown."""
        episode = self.episodes.setdefault((rollout.worker_id.partition(".")[0], env), Episode())
        raw, is_unknown = self._payment(rollout, t, env, values, episode)
        episode.raw += raw
        reward = factor * raw
        if self.config.episode_cap:
            reward = math.copysign(min(abs(reward), max(self.config.episode_cap - episode.paid, 0.0)), reward)
        episode.paid += abs(reward)
        return reward, is_unknown

    def end(self, rollout: Rollout, t: int, env: int) -> None:
        """The episode's end after step t."""
        episode = self.episodes.pop((rollout.worker_id.partition(".")[0], env))
        if (is_success := _success(rollout, t, env)) is not None:
            self.sums[is_success].append(episode.raw)
            self.is_needed |= len(self.sums[False]) >= 30 * (len(self.sums[True]) + 1)

    def _payment(self, rollout: Rollout, t: int, env: int, values: Values, episode: Episode) -> tuple[float, bool]:
        config = self.config
        signals = {"caption": rollout.caption_ids, "caption_counts": rollout.caption_counts, **rollout.signals}
        k, is_start_known = config.coefficient, True
        if config.program:
            v, v_before = self._of_program(rollout, t, env)
        else:
            item = int(signals[config.reads][t, env])
            v, v_before = values.get(item), values.get(int(signals["state_before"][t, env]))
            is_start_known = bool(signals["state_before"][t, env])
        if config.pays == "goals":
            return self._of_goals(rollout, t, env, item if v is not None else None, episode), v is None
        if config.pays == "event" and config.program:
            return (0.0 if v is None else k * v), v is None
        if config.pays == "event":
            goal = None if v is None else self.goals.get(item)
            is_due = goal is None or goal not in episode.goals
            episode.goals |= set() if goal is None else {goal}
            n = int(signals[f"{config.reads}_counts"][t, env])
            return (k * v / n**config.count_exponent if v is not None and is_due else 0.0), v is None
        if config.pays == "potential":
            v = 0.0 if rollout.terminated[t, env] else v
            if v is None or v_before is None:
                return 0.0, True
            return k * (config.gamma * v - v_before), False
        is_unknown = v is None
        v = v if config.program or item else None
        if config.pays == "improvement":
            if is_start_known and v_before is not None:
                episode.maximum = max(episode.maximum, v_before) if episode.maximum is not None else v_before
            m = episode.maximum
            if v is not None:
                episode.maximum = v if m is None else max(m, v)
            return (k * max(0.0, v - m) if v is not None and m is not None else 0.0), is_unknown
        if v is None:
            return 0.0, is_unknown
        visits = self.visits_of_run if config.visits_of == "run" else episode.visits
        number = min(math.floor(config.bins * min(max(v, 0.0), 1.0)), config.bins - 1)
        visits[number] += 1
        return k / math.sqrt(visits[number]), False

    def _of_program(self, rollout: Rollout, t: int, env: int) -> tuple[float | None, float | None]:
        """The program's number after and before the step, of a reward the first alone; None where it is not known."""
        compute, clip = PROGRAMS[self.config.program], self.config.program_clip
        before, after, start = (
            dict(zip(FEATURES, rollout.signals[name][t, env].tolist(), strict=True))
            for name in ("features_before", "features", "features_start")
        )

        def known(number: float, *read: float) -> float | None:
            return None if any(map(math.isnan, read)) else min(max(number, -clip), clip)

        if self.config.program == REWARD_PROGRAM:
            paid = compute(before, after, start, int(rollout.actions[t, env]))
            return known(paid, before["gold"], *after.values(), start["height"]), None
        return known(compute(after), *after.values()), known(compute(before), *before.values())

    def _of_goals(self, rollout: Rollout, t: int, env: int, item: int | None, episode: Episode) -> float:
        """What a step earns for the goals that its known item achieves."""
        settings, book = self.of_goals, self.book
        assert settings is not None
        assert book is not None
        achieved = set() if item is None else set(book.achieved.get(item, ()))
        episode.in_turn |= {g for g in achieved if book.before[g] in {-1, *episode.in_turn}}
        due = achieved & episode.in_turn
        if settings.scope == "suggested":
            due &= set(book.suggested.get(int(rollout.signals["state_before"][t, env]), ()))
        elif settings.scope == "current":
            due &= {int(rollout.obs["goal"][t, env]) - 1}
        if settings.once:
            due -= episode.goals
            episode.goals |= due
        self.parts = {g: self.config.coefficient * book.weights[g] for g in due}
        episode.amounts.append(sum(self.parts.values()))
        if settings.neutralise and rollout.terminated[t, env] and _success(rollout, t, env):
            last = len(episode.amounts) - 1
            self.parts[256] = -sum(b * self.config.gamma ** (k - last) for k, b in enumerate(episode.amounts))
        return sum(self.parts.values())

    def note_goals(self, earned: float) -> None:
        """The last step earned this much."""
        total = sum(self.parts.values())
        for goal, amount in self.parts.items():
            self.by_goal[goal] += earned * amount / total if earned else 0.0


class SlowMixer:
    """`RewardMixer`, one step at a time."""

    def __init__(
        self,
        config: RewardConfig,
        terms: Mapping[str, TermConfig],
        goals: Mapping[int, int],
        of_goals: GoalsConfig | None = None,
    ) -> None:
        self.config = config
        self.terms = {name: SlowTerm(term, goals if name == "main" else {}, of_goals) for name, term in terms.items()}
        self.running: dict[tuple[str, int], list[float]] = {}
        self.intrinsic: list[float] = []
        self.extrinsic: list[float] = []

    def scale(self) -> float:
        """Of the share cap."""
        share = self.config.max_intrinsic_share

        def mean(values: Sequence[float]) -> float:
            weights = [0.99 ** (len(values) - 1 - i) for i in range(len(values))]
            return float(np.average(values, weights=weights))

        if share == 1.0 or not self.extrinsic or not sum(self.intrinsic):
            return 1.0
        return min(1.0, share / (1 - share) * mean(self.extrinsic) / mean(self.intrinsic))

    def mix(
        self, rollouts: Sequence[Rollout], tables: Mapping[str, Values], *, is_dropped: bool = False
    ) -> dict[str, Any]:
        """`total`, the `terms` and their `unknown` fractions, joined along the environment axis."""
        scale = 1.0 if is_dropped else self.scale()
        factors = {name: term.factor() for name, term in self.terms.items()}
        parts = [self._mix(rollout, tables, factors, scale, is_dropped) for rollout in rollouts]
        if not is_dropped:
            for term in self.terms.values():
                term.env_steps += sum(rollout.num_steps for rollout in rollouts)
        return {
            "total": np.concatenate([part["total"] for part in parts], axis=1),
            "terms": {name: np.concatenate([part[name] for part in parts], axis=1) for name in self.terms},
            "unknown": {name: np.mean([part["unknown"][name] for part in parts]) for name in self.terms},
        }

    def _mix(
        self,
        rollout: Rollout,
        tables: Mapping[str, Values],
        factors: Mapping[str, float],
        scale: float,
        is_dropped: bool,
    ) -> dict[str, Any]:
        config, shape = self.config, rollout.actions.shape
        mixed: dict[str, Any] = {name: np.zeros(shape) for name in (*self.terms, "total")}
        unknown = dict.fromkeys(self.terms, 0)
        for t in range(shape[0]):
            for env in range(shape[1]):
                clip = config.extrinsic_clip
                scaled = config.extrinsic_scale * float(rollout.extrinsic_rewards[t, env])
                extrinsic = config.extrinsic_coefficient * min(max(scaled, -clip), clip)
                intrinsic = 0.0
                for name, term in self.terms.items():
                    reward, is_unknown = term.pay(rollout, t, env, tables[name], factors[name])
                    unknown[name] += is_unknown
                    intrinsic += reward
                    mixed[name][t, env] = scale * reward
                    if not is_dropped and env not in rollout.lost and not term.config.program:
                        item = self._item(term.config, rollout, t, env)
                        term.earned[item] = term.earned.get(item, 0.0) + scale * reward
                        term.note_goals(scale * reward)
                mixed["total"][t, env] = extrinsic + scale * intrinsic
                self._observe(rollout, t, env, intrinsic, extrinsic)
        return {**mixed, "unknown": {name: number / rollout.actions.size for name, number in unknown.items()}}

    def _item(self, config: TermConfig, rollout: Rollout, t: int, env: int) -> int:
        if config.pays == "potential" and rollout.terminated[t, env]:
            return 0
        items = rollout.caption_ids if config.reads == "caption" else rollout.signals[config.reads]
        return int(items[t, env])

    def _observe(self, rollout: Rollout, t: int, env: int, intrinsic: float, extrinsic: float) -> None:
        key = rollout.worker_id.partition(".")[0], env
        sums = self.running.setdefault(key, [0.0, 0.0])
        sums[0] += abs(intrinsic)
        sums[1] += max(0.0, extrinsic)
        if rollout.terminated[t, env] or rollout.truncated[t, env]:
            for term in self.terms.values():
                term.end(rollout, t, env)
            self.intrinsic.append(sums[0])
            self.extrinsic += [sums[1]] if sums[1] else []
            del self.running[key]
