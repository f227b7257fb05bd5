"""Gathers one metric line from updates, finished episodes, and the figures of the other parts.

Invariant: every figure covers exactly the log interval or episode window that the catalogue says; state survives a resume.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.rollout import Rollout
from cluster.metrics import NAMES


class RunMetrics:
    """Running means over one log interval, and the window of finished episodes."""

    def __init__(self, episode_window: int) -> None:
        self.episodes_total = 0
        self._episodes: deque[tuple[float, int]] = deque(maxlen=episode_window)
        self._window = episode_window
        self._figures: dict[str, deque[float]] = {}  # what environments say of their episodes' ends, by metric name
        self._intrinsic_returns: deque[float] = deque(maxlen=episode_window)
        self._running_intrinsic: dict[str, np.ndarray] = {}
        self._sums: dict[str, list[float]] = {}  # name -> [sum, number of updates that defined it]
        self._lag_max: float | None = None

    def add_update(self, metrics: Mapping[str, float], lags: Sequence[int]) -> None:
        """Take in one learner step's scalar figures and the policy lag of each rollout in it."""
        for name, value in {**metrics, "policy_lag_mean": float(np.mean(lags))}.items():
            entry = self._sums.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += 1
        self._lag_max = max(self._lag_max or 0, *lags)

    def add_rollout(self, rollout: Rollout, intrinsic: np.ndarray) -> None:
        """Take in a consumed rollout's episodes; `intrinsic` [T, B] is what its steps earned, weighted."""
        self.episodes_total += len(rollout.episodes)
        self._episodes.extend((episode.episode_return, episode.length) for episode in rollout.episodes)
        for episode in rollout.episodes:
            self._add_figures(episode.info)
        index = rollout.worker_id.partition(".")[0]
        if rollout.sequence_number == 0 or index not in self._running_intrinsic:
            self._running_intrinsic[index] = np.zeros(intrinsic.shape[1])
        running = self._running_intrinsic[index]
        done = rollout.terminated | rollout.truncated
        for t in range(len(intrinsic)):
            running += intrinsic[t]
            if done[t].any():
                self._intrinsic_returns.extend(running[done[t]].tolist())
                running[done[t]] = 0.0

    def take_line(self) -> dict[str, Any]:
        """The figures of the interval that ends now; starts the next interval."""
        line: dict[str, Any] = {name: total / n for name, (total, n) in self._sums.items()}
        line |= {"policy_lag_max": self._lag_max, "episodes_total": self.episodes_total}
        if self._episodes:
            line["episode_return_extrinsic_mean"] = _mean([episode[0] for episode in self._episodes])
            line["episode_length_mean"] = _mean([episode[1] for episode in self._episodes])
        line |= {name: _mean(values) for name, values in self._figures.items()}
        if self._intrinsic_returns:
            line["episode_return_intrinsic_mean"] = _mean(self._intrinsic_returns)
        self._sums, self._lag_max = {}, None
        return line

    def state_dict(self) -> dict[str, Any]:
        """JSON values and arrays."""
        return {
            "episodes_total": self.episodes_total,
            "episodes": [list(episode) for episode in self._episodes],
            "figures": {name: list(values) for name, values in self._figures.items()},
            "intrinsic_returns": list(self._intrinsic_returns),
            "running_intrinsic": dict(self._running_intrinsic),
            "sums": {name: list(entry) for name, entry in self._sums.items()},
            "lag_max": self._lag_max,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.episodes_total = state["episodes_total"]
        self._episodes.extend((value, length) for value, length in state["episodes"])
        self._figures = {name: deque(values, self._window) for name, values in state.get("figures", {}).items()}
        self._intrinsic_returns.extend(state["intrinsic_returns"])
        self._running_intrinsic = {index: np.array(array) for index, array in state["running_intrinsic"].items()}
        self._sums, self._lag_max = {name: list(entry) for name, entry in state["sums"].items()}, state["lag_max"]

    def _add_figures(self, info: Mapping[str, float]) -> None:
        for name, value in info.items():
            metric = f"episode_{name}_mean"
            if metric in NAMES:
                self._figures.setdefault(metric, deque(maxlen=self._window)).append(value)


def _mean(values: Sequence[float]) -> float:
    """NaN, without a warning, where an environment's figures are no numbers."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(values))
