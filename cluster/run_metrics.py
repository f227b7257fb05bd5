"""Gathers one metric line from updates, finished episodes, and the figures of the other parts.

Invariant: every figure covers exactly the log interval or episode window that the catalogue says; state survives a resume.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.rollout import Rollout
from cluster.episode_window import EpisodeWindow
from cluster.metrics import NAMES


class RunMetrics:
    """Running means over one log interval, and the window of finished episodes."""

    def __init__(self, episode_window: int) -> None:
        self.episodes_total = 0
        self._window = EpisodeWindow(episode_window)
        self._sums: dict[str, list[float]] = {}  # name -> [sum, number of updates that defined it]
        self._rewards = {"extrinsic": 0.0, "intrinsic": 0.0}  # sums over the steps of the interval
        self._steps = 0
        self._lag_max: float | None = None

    def add_update(self, metrics: Mapping[str, float], lags: Sequence[int]) -> None:
        """Take in one learner step's scalar figures and the policy lag of each rollout in it."""
        for name, value in {**metrics, "policy_lag_mean": float(np.mean(lags))}.items():
            entry = self._sums.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += 1
        self._lag_max = max(self._lag_max or 0, *lags)

    def add_rollout(self, rollout: Rollout, intrinsic: np.ndarray) -> None:
        """Take in a consumed rollout's rewards and episodes; `intrinsic` [T, B] is what its steps earned, weighted."""
        self.episodes_total += len(rollout.episodes)
        self._window.add_rollout(rollout, intrinsic)
        self._steps += rollout.num_steps
        self._rewards["extrinsic"] += float(rollout.extrinsic_rewards[:, rollout.kept].sum(dtype=np.float64))
        self._rewards["intrinsic"] += float(intrinsic[:, rollout.kept].sum(dtype=np.float64))

    def take_line(self) -> dict[str, Any]:
        """The figures of the interval that ends now; starts the next interval."""
        line: dict[str, Any] = {name: total / n for name, (total, n) in self._sums.items()}
        line |= {"policy_lag_max": self._lag_max, "episodes_total": self.episodes_total}
        if self._steps:
            line |= {f"reward_{kind}_per_1000_steps": 1000 * total / self._steps for kind, total in self._rewards.items()}
        line |= self._of_episodes()
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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.episodes_total = state["episodes_total"]
        self._window.load_state_dict(state["window"])
        self._sums, self._lag_max = {name: list(entry) for name, entry in state["sums"].items()}, state["lag_max"]
        self._rewards, self._steps = dict(state["rewards"]), state["steps"]

    def _of_episodes(self) -> dict[str, float]:
        """Means over the window, and what happened in it per 1,000 of its steps."""
        episodes = self._window.episodes
        columns: dict[str, list[float]] = {}
        totals: dict[str, list[float]] = {}  # name -> [sum, steps of the episodes that have it]
        for episode in episodes:
            figures = {"return_extrinsic": episode.extrinsic, "length": float(episode.length), **episode.info}
            if not math.isnan(episode.intrinsic):
                figures["return_intrinsic"] = episode.intrinsic
            for name, value in figures.items():
                columns.setdefault(f"episode_{name}_mean", []).append(value)
                total = totals.setdefault(f"{name}_per_1000_steps", [0.0, 0.0])
                total[0] += value
                total[1] += episode.length
        with np.errstate(invalid="ignore"):  # an environment's figures may be no numbers
            means = {name: float(np.mean(values)) for name, values in columns.items() if name in NAMES}
        return means | {name: 1000 * total / steps for name, (total, steps) in totals.items() if name in NAMES}
