"""Plays episodes without learning, and sums them up with confidence intervals; the environments are passed in.

Invariant: every environment plays the same number of episodes to their end, so short episodes do not crowd out long ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from actors.environment import VectorEnvironment
from actors.policy import PolicyNet
from actors.rollout import EpisodeStatistics


class Player(Protocol):
    """Chooses actions for B environments."""

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Actions [B] i64 for observations name -> [B, ...]."""
        ...

    def restart(self, rows: Sequence[int]) -> None:
        """New episodes have begun in these environments."""
        ...


class RandomPlayer:
    """Uniformly random actions: the control that any policy must beat."""

    def __init__(self, num_actions: int, num_envs: int, seed: int) -> None:
        self._rng, self._num_actions, self._num_envs = np.random.default_rng(seed), num_actions, num_envs

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Player`."""
        return self._rng.integers(0, self._num_actions, self._num_envs)

    def restart(self, rows: Sequence[int]) -> None:
        """Nothing is remembered."""


class PolicyPlayer:
    """Samples from a policy's distribution, as the rollout workers do."""

    def __init__(self, net: PolicyNet, num_envs: int, seed: int) -> None:
        self._net, self._rng = net.eval(), np.random.default_rng(seed)
        self._core = net.initial_state(num_envs)

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Player`."""
        logits, _, self._core = self._net.step({name: torch.from_numpy(array) for name, array in obs.items()}, self._core)
        noise = self._rng.gumbel(size=tuple(logits.shape))
        return (logits.numpy() + noise).argmax(-1)

    def restart(self, rows: Sequence[int]) -> None:
        """Zero the core state of these environments."""
        for tensor in self._core.values():
            tensor[list(rows)] = 0.0


def play(env: VectorEnvironment, player: Player, episodes_per_env: int) -> list[EpisodeStatistics]:
    """The first `episodes_per_env` episodes of every environment, in the order in which they end."""
    finished: list[EpisodeStatistics] = []
    remaining = np.full(env.num_envs, episodes_per_env)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
    obs, _ = env.reset()
    while remaining.any():
        step = env.step(player.act(obs))
        returns += step.rewards
        lengths += 1
        for end in step.ends:
            i = end.index
            if remaining[i]:
                remaining[i] -= 1
                finished.append(
                    EpisodeStatistics(
                        episode_return=float(returns[i]), length=int(lengths[i]), terminated=bool(step.terminated[i]), info=end.info
                    )
                )
            returns[i], lengths[i] = 0.0, 0
        if step.ends:
            player.restart([end.index for end in step.ends])
        obs = step.obs
    return finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over episodes with its 95 % interval."""

    mean: float
    low: float
    high: float


def summarise(episodes: Sequence[EpisodeStatistics]) -> dict[str, Estimate]:
    """Return, length, and every figure that the environment adds, by name; proportions get Wilson's interval, others a bootstrap's."""
    columns = {"return": [e.episode_return for e in episodes], "length": [float(e.length) for e in episodes]}
    for name in sorted({name for episode in episodes for name in episode.info}):
        columns[name] = [episode.info[name] for episode in episodes if name in episode.info]
    return {name: (_wilson if name == "success" else _bootstrap)(np.array(values)) for name, values in columns.items()}


def _bootstrap(values: np.ndarray, resamples: int = 2000) -> Estimate:
    """Percentile bootstrap of the mean (Efron 1979); seeded, so the same episodes give the same interval."""
    means = np.random.default_rng(0).choice(values, (resamples, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(mean=float(values.mean()), low=float(low), high=float(high))


def _wilson(values: np.ndarray, z: float = 1.96) -> Estimate:
    """Wilson's score interval of a proportion (Wilson 1927): sensible at 0 and 1, where the bootstrap has no width."""
    n, p = len(values), float(values.mean())
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Estimate(mean=p, low=max(0.0, (centre - spread) / scale), high=min(1.0, (centre + spread) / scale))
