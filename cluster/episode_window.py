"""The finished episodes that a run's means are taken over, in the order in which they began.

Environments that start together end their short episodes first, and wherever some tasks take long, whoever averages what has ended
averages what is short. So an episode counts only when no earlier one of its worker still runs: the means are undefined until the first
episodes have all ended, and from then on of the right size.

Invariant: every episode counts once and whole; none that an exception cut, and none that a replaced worker left unfinished.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.rollout import Rollout

MAX_WAITING = 10_000
"""Finished episodes that wait, per worker, for earlier ones to end; beyond it the first count: some episodes may never end."""


@dataclass(frozen=True, slots=True)
class FinishedEpisode:
    """What one episode adds to the means."""

    extrinsic: float
    length: int
    intrinsic: float
    """NaN where some of its rollouts were dropped."""
    info: Mapping[str, float]
    """What the environment says of its end."""


@dataclass(slots=True)
class _Worker:
    """The episodes of one worker's environments, on its clock of steps per environment."""

    intrinsic: np.ndarray
    """[B] f64: what the running episodes have earned."""
    begun_at: np.ndarray
    """[B] i64: when they began."""
    next_number: int = 0
    """Of the rollout that is to come."""
    waiting: list[tuple[int, FinishedEpisode]] = field(default_factory=list)
    """Finished episodes with the time at which they began, earliest first."""


class EpisodeWindow:
    """The last `size` episodes that count."""

    def __init__(self, size: int) -> None:
        self.episodes: deque[FinishedEpisode] = deque(maxlen=size)
        self._workers: dict[str, _Worker] = {}

    def add_rollout(self, rollout: Rollout, intrinsic: np.ndarray) -> None:
        """Take in a consumed rollout's episodes; `intrinsic` [T, B] is what its steps earned, weighted."""
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
                    record = FinishedEpisode(episode.episode_return, episode.length, float(worker.intrinsic[i]), episode.info)
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
            "episodes": [_to_json(episode) for episode in self.episodes],
            "workers": {
                index: {
                    "intrinsic": worker.intrinsic.copy(),
                    "begun_at": worker.begun_at.copy(),
                    "next_number": worker.next_number,
                    "waiting": [[begun_at, *_to_json(episode)] for begun_at, episode in worker.waiting],
                }
                for index, worker in self._workers.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.episodes.extend(_from_json(entry) for entry in state["episodes"])
        self._workers = {
            index: _Worker(
                np.array(worker["intrinsic"]),
                np.array(worker["begun_at"]),
                worker["next_number"],
                [(entry[0], _from_json(entry[1:])) for entry in worker["waiting"]],
            )
            for index, worker in state["workers"].items()
        }

    def _worker(self, rollout: Rollout, num_envs: int) -> _Worker:
        index = rollout.worker_id.partition(".")[0]
        worker, number = self._workers.get(index), rollout.sequence_number
        if worker is None or number == 0:
            if worker is not None:  # what its predecessor had not finished will never end
                self._count(worker, len(worker.waiting))
            worker = self._workers[index] = _Worker(np.zeros(num_envs), np.full(num_envs, number * len(rollout.actions)))
        if number != worker.next_number:  # what the running episodes earned in between is not known
            worker.intrinsic[:] = math.nan
        return worker

    def _count(self, worker: _Worker, number: int) -> None:
        self.episodes.extend(episode for _, episode in worker.waiting[:number])
        del worker.waiting[:number]


def _to_json(episode: FinishedEpisode) -> list[Any]:
    intrinsic = None if math.isnan(episode.intrinsic) else episode.intrinsic
    return [episode.extrinsic, episode.length, intrinsic, dict(episode.info)]


def _from_json(entry: list[Any]) -> FinishedEpisode:
    extrinsic, length, intrinsic, info = entry
    return FinishedEpisode(extrinsic, length, math.nan if intrinsic is None else intrinsic, info)
