"""Computes the learner's part of a metric line from updates and finished episodes.

Environments that start together end their short episodes first, so a mean over ended episodes is biased towards short
ones. Therefore an episode counts only when no earlier one of its worker still runs (`EpisodeWindow`): the means are
undefined until the first episodes have all ended, and unbiased from then on.

Invariant: every metric covers exactly the log interval or episode window of the catalogue; every complete episode
counts once, those cut by an exception or left by a replaced worker never; state survives a resume.
"""

import copy
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from actors.rollout import Rollout
from cluster.metrics import NAMES

MAX_WAITING = 10_000
"""Finished episodes per worker that wait for earlier ones, some of which may never end; beyond it the first count."""


class FinishedEpisode(NamedTuple):
    """One episode's contribution to the means; a checkpoint holds it as a list."""

    extrinsic: float
    length: int
    intrinsic: float | None
    """None where some of its rollouts were dropped."""
    info: dict[str, float]
    """The environment's metrics at its end."""


@dataclass(slots=True)
class _Worker:
    """The episodes of one worker's environments; times are in steps per environment."""

    intrinsic: np.ndarray
    """[B] f64: intrinsic return of the running episodes so far."""
    begun_at: np.ndarray
    """[B] i64: their start times."""
    next_number: int = 0
    """The sequence number of the next rollout."""
    waiting: list[tuple[int, FinishedEpisode]] = field(default_factory=list)
    """Finished episodes with their start times, earliest first."""


class EpisodeWindow:
    """The last `size` counted episodes."""

    def __init__(self, size: int) -> None:
        self.episodes: deque[FinishedEpisode] = deque(maxlen=size)
        self._workers: dict[str, _Worker] = {}

    def add_rollout(self, rollout: Rollout, intrinsic: np.ndarray) -> None:
        """Add a consumed rollout's episodes; `intrinsic` [T, B]: the weighted intrinsic reward of its steps."""
        worker = self._worker(rollout, intrinsic.shape[1])
        number_of_steps = len(intrinsic)
        clock = rollout.sequence_number * number_of_steps
        ended = dict(zip(rollout.episode_ends, rollout.episodes, strict=True))
        done = rollout.terminated | rollout.truncated
        for t in range(number_of_steps):
            worker.intrinsic += intrinsic[t]
            for i in done[t].nonzero()[0].tolist():
                if episode := ended.get((t, i)):  # else the environment raised
                    begun_at = clock + t + 1 - episode.length
                    paid = None if np.isnan(worker.intrinsic[i]) else float(worker.intrinsic[i])
                    record = FinishedEpisode(episode.episode_return, episode.length, paid, dict(episode.info))
                    worker.waiting.append((begun_at, record))
                worker.intrinsic[i], worker.begun_at[i] = 0.0, clock + t + 1
        worker.next_number = rollout.sequence_number + 1
        worker.waiting.sort(key=lambda entry: entry[0])
        first_running = worker.begun_at.min()
        number = sum(begun_at < first_running for begun_at, _ in worker.waiting)
        self._count(worker, max(number, len(worker.waiting) - MAX_WAITING))

    def state_dict(self) -> dict[str, Any]:
        """JSON values and arrays."""
        return {
            "episodes": [list(episode) for episode in self.episodes],
            "workers": {
                index: {
                    "intrinsic": worker.intrinsic.copy(),
                    "begun_at": worker.begun_at.copy(),
                    "next_number": worker.next_number,
                    "waiting": [[begun_at, *episode] for begun_at, episode in worker.waiting],
                }
                for index, worker in self._workers.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.episodes.extend(FinishedEpisode(*entry) for entry in state["episodes"])
        self._workers = {
            index: _Worker(
                np.array(worker["intrinsic"]),
                np.array(worker["begun_at"]),
                worker["next_number"],
                [(begun_at, FinishedEpisode(*entry)) for begun_at, *entry in worker["waiting"]],
            )
            for index, worker in state["workers"].items()
        }

    def _worker(self, rollout: Rollout, num_envs: int) -> _Worker:
        index = rollout.worker_id.partition(".")[0]
        worker, number = self._workers.get(index), rollout.sequence_number
        if worker is None or number == 0:
            if worker is not None:  # its predecessor's unfinished episodes never end
                self._count(worker, len(worker.waiting))
            begun_at = np.full(num_envs, number * len(rollout.actions))
            worker = self._workers[index] = _Worker(np.zeros(num_envs), begun_at)
        if number != worker.next_number:  # the rewards of the missing rollouts are unknown
            worker.intrinsic[:] = math.nan
        return worker

    def _count(self, worker: _Worker, number: int) -> None:
        self.episodes.extend(episode for _, episode in worker.waiting[:number])
        del worker.waiting[:number]


class TermMetrics:
    """What the terms of the reward paid: means over the log interval, and the newest of what is a state."""

    MEANS = ("mean", "share", "unknown")

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {}
        self._newest: dict[str, dict[str, float]] = {}
        self._updates = 0

    def add(self, terms: Mapping[str, Mapping[str, float]]) -> None:
        """Add `StepResult.terms` of one update."""
        self._updates += 1
        for name, figures in terms.items():
            means = [key for key in figures if key in self.MEANS or key.startswith("component_")]
            sums = self._sums.setdefault(name, dict.fromkeys(means, 0.0))
            for key in means:
                sums[key] += figures[key]
            self._newest[name] = {key: figure for key, figure in figures.items() if key not in means}

    def take_line(self) -> dict[str, Any]:
        """`terms`, where there are several, and `reward_trust_min`; starts the next interval."""
        terms: dict[str, dict[str, float]] = {}
        for name, newest in self._newest.items():
            means = self._sums.get(name, {})
            terms[name] = {key: total / self._updates for key, total in means.items()} | newest
        self._sums, self._updates = {}, 0
        trust = {"reward_trust_min": min(term["trust"] for term in terms.values())} if terms else {}
        return trust | ({"terms": terms} if len(terms) > 1 else {})

    def state_dict(self) -> dict[str, Any]:
        """JSON values, without the tables' versions, which begin anew with each run epoch."""
        newest = {
            name: {key: figure for key, figure in figures.items() if key != "version"}
            for name, figures in self._newest.items()
        }
        return copy.deepcopy({"sums": self._sums, "newest": newest, "updates": self._updates})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; an empty one, of an older run, changes nothing."""
        if state:
            self._sums, self._newest, self._updates = state["sums"], state["newest"], state["updates"]


class RunMetrics:
    """Means over the running log interval, and the window of finished episodes."""

    def __init__(self, episode_window: int) -> None:
        self.episodes_total = 0
        self._window = EpisodeWindow(episode_window)
        self._sums: dict[str, list[float]] = {}  # name -> [sum, number of updates that defined it]
        self._rewards = {"extrinsic": 0.0, "intrinsic": 0.0}  # sums over the steps of the interval
        self._steps = 0
        self._lag_max: float | None = None
        self._terms = TermMetrics()

    def add_update(
        self, metrics: Mapping[str, float], lags: Sequence[int], terms: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Add one learner step's scalar metrics, the policy lag of each of its rollouts, and what the terms of the
        reward paid."""
        self._terms.add(terms)
        for name, value in {**metrics, "policy_lag_mean": float(np.mean(lags))}.items():
            entry = self._sums.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += 1
        self._lag_max = max(self._lag_max or 0, *lags)

    def add_rollout(self, rollout: Rollout, intrinsic: np.ndarray) -> None:
        """Add a consumed rollout's rewards and episodes; `intrinsic` [T, B] is its weighted intrinsic reward."""
        self.episodes_total += len(rollout.episodes)
        self._window.add_rollout(rollout, intrinsic)
        self._steps += rollout.num_steps
        self._rewards["extrinsic"] += float(rollout.extrinsic_rewards[:, rollout.kept].sum(dtype=np.float64))
        self._rewards["intrinsic"] += float(intrinsic[:, rollout.kept].sum(dtype=np.float64))

    def take_line(self) -> dict[str, Any]:
        """The metrics of the interval that ends now; starts the next interval."""
        line: dict[str, Any] = {name: total / n for name, (total, n) in self._sums.items()}
        line |= {"policy_lag_max": self._lag_max, "episodes_total": self.episodes_total}
        for kind, total in self._rewards.items() if self._steps else ():
            line[f"reward_{kind}_per_1000_steps"] = 1000 * total / self._steps
        line |= self._of_episodes() | self._terms.take_line()
        self._sums, self._lag_max = {}, None
        self._rewards, self._steps = dict.fromkeys(self._rewards, 0.0), 0
        return line

    def state_dict(self) -> dict[str, Any]:
        """JSON values and arrays."""
        return {
            "episodes_total": self.episodes_total,
            "window": self._window.state_dict(),
            "sums": {name: list(entry) for name, entry in self._sums.items()},
            "rewards": dict(self._rewards),
            "steps": self._steps,
            "lag_max": self._lag_max,
            "terms": self._terms.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.episodes_total = state["episodes_total"]
        self._window.load_state_dict(state["window"])
        self._sums, self._lag_max = {name: list(entry) for name, entry in state["sums"].items()}, state["lag_max"]
        self._rewards, self._steps = dict(state["rewards"]), state["steps"]
        self._terms.load_state_dict(state.get("terms", {}))

    def _of_episodes(self) -> dict[str, float]:
        """Means over the window's episodes, and totals per 1,000 of their steps."""
        columns: dict[str, list[float]] = {}
        totals: dict[str, list[float]] = {}  # name -> [sum, steps of the episodes that have it]
        for episode in self._window.episodes:
            metrics = {"return_extrinsic": episode.extrinsic, "length": float(episode.length), **episode.info}
            if episode.intrinsic is not None:
                metrics["return_intrinsic"] = episode.intrinsic
            for name, value in metrics.items():
                columns.setdefault(f"episode_{name}_mean", []).append(value)
                total = totals.setdefault(f"{name}_per_1000_steps", [0.0, 0.0])
                total[0] += value
                total[1] += episode.length
        with np.errstate(invalid="ignore"):  # an environment's metrics may be NaN or infinite
            means = {name: float(np.mean(values)) for name, values in columns.items() if name in NAMES}
        return means | {name: 1000 * total / steps for name, (total, steps) in totals.items() if name in NAMES}


def with_annotation(line: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A metric line with those of annotation; what both say of a term is joined."""
    before = line.get("terms", {})
    told = {name: {**before.get(name, {}), **of_term} for name, of_term in metrics.get("terms", {}).items()}
    terms = {**before, **told}  # programs have no annotation
    return {**line, **metrics, **({"terms": terms} if terms else {})}
