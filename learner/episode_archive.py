"""The episode archive: a bounded sample of the run's finished episodes, put together from rollouts.

Of the episodes with success, and of those without, a uniform sample of `archive.max_episodes` each is kept (reservoir
sampling, Vitter 1985, algorithm R), of each episode the last 512 steps.

Invariant: every rollout of a worker is observed once, in the order in which it was played, dropped ones included, so an
archived episode has all its steps, or the last 512. An episode of which any step was played in a rollout in which its
environment was lost is never kept, nor one whose beginning was not seen. Nothing of a rollout's memory is held on to.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.features.signals import FEATURES, FEATURES_BEFORE, FEATURES_START
from actors.rollout import EpisodeStatistics, Rollout
from configs.schema import ArchiveConfig
from learner.episodes import Episode, Episodes, packed, unpacked
from learner.reward.episode_rewards import succeeded

MAX_STEPS = 512
"""Kept of an episode: its last."""


@dataclass(slots=True)
class _Running:
    """The running episodes of one worker's B environments. Steps are counted from when it was first seen."""

    begun: list[int]  # [B]: the first step of each environment's episode
    is_whole: list[bool]  # [B]: whether all of its steps so far may be kept
    num_steps: int = 0
    chunks: list[tuple[int, dict[str, np.ndarray]]] = field(default_factory=list)
    """Steps that running episodes may still need: the first one's number, and [T, B, ...] by name."""

    def window(self, end: int, env: int) -> dict[str, np.ndarray]:
        """[L, ...] by name, copied: the last steps before step `end` of that environment's episode."""
        first = max(self.begun[env], end - MAX_STEPS)
        parts = [
            (chunk, slice(max(first - begin, 0), end - begin))
            for begin, chunk in self.chunks
            if begin + len(chunk["actions"]) > first
        ]
        if len(parts) == 1:
            chunk, rows = parts[0]
            return {name: array[rows, env].copy() for name, array in chunk.items()}
        return {name: np.concatenate([chunk[name][rows, env] for chunk, rows in parts]) for name in parts[0][0]}

    @property
    def oldest(self) -> int:
        """The first step that a later end may need."""
        return max(min(self.begun), self.num_steps + 1 - MAX_STEPS)

    def forget(self) -> None:
        """Copy what later ends may need, and drop the rest."""
        oldest = self.oldest
        *earlier, (first, newest) = self.chunks
        kept = [chunk for chunk in earlier if chunk[0] + len(chunk[1]["actions"]) > oldest]
        skipped = max(oldest - first, 0)
        newest = {name: array[skipped:].copy() for name, array in newest.items()}
        self.chunks = [*kept, (first + skipped, newest)]


class EpisodeArchive:
    """See the module. One object observes all rollouts that the learner consumes or drops."""

    def __init__(self, config: ArchiveConfig, features: tuple[str, ...], actions: tuple[str, ...], seed: int) -> None:
        """`features` and `actions`: their names, those of features only if rollouts have them."""
        self._max_episodes, self._features, self._actions = config.max_episodes, features, actions
        self._rng = np.random.default_rng(zlib.crc32(f"{seed}/episodes".encode()))
        self._kept: tuple[list[Episode], list[Episode]] = [], []  # without success, with
        self._seen = [0, 0]
        self._running: dict[str, _Running] = {}  # by worker index

    def observe(self, rollout: Rollout) -> None:
        """Take a worker's next rollout."""
        index, num_envs = rollout.worker_id.partition(".")[0], rollout.actions.shape[1]
        if rollout.sequence_number == 0 or index not in self._running:
            self._running[index] = _Running([0] * num_envs, [rollout.sequence_number == 0] * num_envs)
        running = self._running[index]
        first = running.num_steps
        running.chunks.append((first, _of_steps(rollout)))
        running.num_steps += len(rollout.actions)
        ends = dict(zip(rollout.episode_ends, rollout.episodes, strict=True))
        for t, env in np.argwhere(rollout.terminated | rollout.truncated).tolist():  # in the order of steps
            statistics = ends.get((t, env))
            if statistics is not None and running.is_whole[env] and env not in rollout.lost:
                self._offer(statistics, running, rollout, t, env)
            running.begun[env], running.is_whole[env] = first + t + 1, True
        for env in rollout.lost:
            running.is_whole[env] = running.begun[env] == running.num_steps  # an episode that is yet to begin
        running.forget()

    def _offer(self, statistics: EpisodeStatistics, running: _Running, rollout: Rollout, t: int, env: int) -> None:
        """An episode has finished: keep it if the lot falls on it."""
        success = succeeded(statistics)
        kept, self._seen[success] = self._kept[success], self._seen[success] + 1
        place = len(kept)
        if place == self._max_episodes:
            place = int(self._rng.random() * self._seen[success])
            if place >= self._max_episodes:
                return
        steps = running.window(running.num_steps - len(rollout.actions) + t + 1, env)
        before = steps.pop(FEATURES_BEFORE, None)
        features = start = None
        if before is not None:
            features = np.concatenate([before, rollout.signals[FEATURES][t : t + 1, env]])
            start = rollout.signals[FEATURES_START][t, env].copy()
        episode = Episode(
            steps=steps,
            features=features,
            start=start,
            success=success,
            terminated=statistics.terminated,
            extrinsic_return=statistics.episode_return,
            length=statistics.length,
        )
        kept[place : place + 1] = [episode]

    @property
    def episodes(self) -> Episodes:
        """What is kept now, episodes without success first."""
        without, with_success = self._kept
        seen = self._seen[0], self._seen[1]
        return Episodes(episodes=[*without, *with_success], seen=seen, features=self._features, actions=self._actions)

    def state_dict(self) -> dict[str, Any]:
        """Sample, running episodes and the state of the generator."""
        return {
            "kept": [packed(kept) for kept in self._kept],
            "seen": list(self._seen),
            "rng": self._rng.bit_generator.state,
            "running": {index: _state(running) for index, running in self._running.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        without, with_success = map(unpacked, state["kept"])
        self._kept, self._seen = (without, with_success), list(state["seen"])
        self._rng.bit_generator.state = state["rng"]
        self._running = {
            index: _Running(
                list(running["begun"]),
                list(running["is_whole"]),
                running["num_steps"],
                [(running["first"], dict(running["steps"]))],
            )
            for index, running in state["running"].items()
        }


def _of_steps(rollout: Rollout) -> dict[str, np.ndarray]:
    """What is kept of each step, [T, B, ...] by name; the features after an action are those before the next."""
    of_features = (FEATURES, FEATURES_START)
    return {
        "actions": rollout.actions.astype(np.int32),
        "extrinsic_rewards": rollout.extrinsic_rewards,
        "caption": rollout.caption_ids,
        "caption_counts": rollout.caption_counts,
        **{name: array for name, array in rollout.signals.items() if name not in of_features},
    }


def _state(running: _Running) -> dict[str, Any]:
    """The same however the steps were cut into chunks."""
    first, names = running.chunks[0][0], running.chunks[0][1]
    skipped = max(running.oldest - first, 0)
    return {
        "begun": list(running.begun),
        "is_whole": list(running.is_whole),
        "num_steps": running.num_steps,
        "first": first + skipped,
        "steps": {
            name: np.concatenate([chunk[name] for _, chunk in running.chunks])[skipped:].copy() for name in names
        },
    }
