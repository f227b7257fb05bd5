"""Plays episodes without learning, and summarises them with confidence intervals; the environments are passed in.

Invariant: every player plays the same episodes, the first n of each environment, so short episodes are not
over-represented and two players' results can be compared game by game.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from actors.environments.vector import VectorEnvironment
from actors.networks.repeated_rows import EncodingCache
from actors.policy import PolicyNet
from actors.rollout import EpisodeStatistics

CACHED_STEPS = 32
"""Steps after which `PolicyPlayer` clears its cached encodings, to bound memory."""
Episodes = dict[tuple[int, int], EpisodeStatistics]
"""Finished episodes by environment and episode number (with equal seeds the same game), in the order of their ends."""


class Player(Protocol):
    """Chooses actions for B environments."""

    def act(self, obs: Mapping[str, np.ndarray], counted: np.ndarray) -> np.ndarray:
        """Actions [B] i64 for observations name -> [B, ...]; `counted` [B] bool: whether the episode will count."""

    def restart(self, rows: Sequence[int]) -> None:
        """Called when new episodes have begun in the environments `rows`."""


class LookingPlayer:
    """A player that has a distribution of actions in each state, and averages these where it counts."""

    def __init__(self, num_actions: int) -> None:
        self.num_states = 0
        """States visited so far."""
        self._probabilities, self._entropies = np.zeros(num_actions), 0.0

    def _note(self, probabilities: np.ndarray) -> None:
        """Distributions [N, A] f64 of N more states that count."""
        self.num_states += len(probabilities)
        self._probabilities += probabilities.sum(axis=0)
        self._entropies += _entropies(probabilities).sum()

    @property
    def frequencies(self) -> np.ndarray:
        """[A] f64: the mean action distribution over the states visited so far."""
        return self._probabilities / self.num_states

    @property
    def state_information(self) -> float:
        """Mutual information of state and action in nats over the states so far (see `loss.state_information`)."""
        return max(0.0, float(_entropies(self.frequencies) - self._entropies / self.num_states))


class BlindPlayer:
    """Draws actions with fixed frequencies, without looking: what a policy that uses its observations must beat."""

    def __init__(self, frequencies: np.ndarray, num_envs: int, seed: int) -> None:
        """`frequencies` [A], at least 0; they need not sum to 1."""
        self._rng, self._num_envs = np.random.default_rng(seed), num_envs
        upper_ends = np.cumsum(frequencies, dtype=np.float64)
        self._upper_ends = upper_ends / upper_ends[-1]

    def act(self, obs: Mapping[str, np.ndarray], counted: np.ndarray) -> np.ndarray:
        # Each number in [0, 1) lies in the interval of one action; an action of frequency 0 has an empty interval.
        return np.searchsorted(self._upper_ends, self._rng.random(self._num_envs), side="right")

    def restart(self, rows: Sequence[int]) -> None:
        """Has no state."""


class RandomPlayer(BlindPlayer):
    """Draws actions uniformly."""

    def __init__(self, num_actions: int, num_envs: int, seed: int) -> None:
        super().__init__(np.ones(num_actions), num_envs, seed)


class PolicyPlayer(LookingPlayer):
    """Samples from a policy in float32, as the rollout workers do, and averages its distributions where it counts."""

    def __init__(self, net: PolicyNet, num_envs: int, seed: int) -> None:
        super().__init__(net.policy_head.out_features)
        self._net, self._rng = net.eval(), np.random.default_rng(seed)
        self._core = net.initial_state(num_envs)
        self._caches: dict[str, EncodingCache] = {}
        self._steps = 0
        self.values = np.full(num_envs, np.nan, np.float32)
        """[B] f32: the value estimates, in units of reward, of the observations last acted on."""

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray], counted: np.ndarray) -> np.ndarray:
        if self._steps % CACHED_STEPS == 0:
            self._caches = self._net.make_caches(CACHED_STEPS * len(counted))
        self._steps += 1
        tensors = {name: torch.from_numpy(array) for name, array in obs.items()}
        logits, values, self._core = self._net.step(tensors, self._core, self._caches)
        self.values = values.numpy()
        self._note(logits.double().softmax(-1).numpy()[counted])
        return (logits.numpy() + self._rng.gumbel(size=tuple(logits.shape))).argmax(-1)

    def restart(self, rows: Sequence[int]) -> None:
        """Zero the core state of these environments."""
        for tensor in self._core.values():
            tensor[list(rows)] = 0.0


class JudgePlayer(LookingPlayer):
    """Plays what a language model answers to the states of its environments in words, and to the last captions."""

    def __init__(
        self,
        probabilities: Callable[[Sequence[bytes], Sequence[bytes]], np.ndarray],
        states: Callable[[], Sequence[bytes]],
        num_actions: int,
        num_envs: int,
        seed: int,
        *,
        greedy: bool = False,
    ) -> None:
        """`probabilities`: [B, A] f64 of raw states and captions. `states`: the environments' current ones. `greedy`:
        take the likeliest action instead of drawing one."""
        super().__init__(num_actions)
        self._ask, self._states, self._greedy = probabilities, states, greedy
        self._rng, self._captions = np.random.default_rng(seed), [b""] * num_envs

    def see(self, captions: Sequence[bytes]) -> None:
        """The raw captions [B] of what the environments show now; see `play`."""
        self._captions = list(captions)

    def act(self, obs: Mapping[str, np.ndarray], counted: np.ndarray) -> np.ndarray:
        """See `Player`; environments whose episodes do not count act at random, without a question."""
        rows = np.flatnonzero(counted).tolist()
        states = self._states()
        played = self._ask([states[i] for i in rows], [self._captions[i] for i in rows])
        if self._greedy:
            played = np.eye(played.shape[1])[played.argmax(axis=1)]
        self._note(played)
        everywhere = np.full((len(counted), played.shape[1]), 1.0 / played.shape[1])
        everywhere[rows] = played
        # Each number in [0, 1) lies in the interval of one action; an action of probability 0 has an empty interval.
        upper_ends = everywhere.cumsum(axis=1)
        drawn = self._rng.random(len(counted)) * upper_ends[:, -1]
        return (upper_ends <= drawn[:, None]).sum(axis=1)

    def restart(self, rows: Sequence[int]) -> None:
        """Has no state."""


def _entropies(probabilities: np.ndarray) -> np.ndarray:
    """Entropies [...] in nats of distributions [..., A]."""
    return -(probabilities * np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))).sum(axis=-1)


class OutOfTime(RuntimeError):
    """The time limit was reached before all episodes had ended."""


def play(
    env: VectorEnvironment,
    player: Player,
    episodes_per_env: int,
    is_time_up: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda number: None,
    show: Callable[[Sequence[bytes]], None] = lambda captions: None,
) -> Episodes:
    """The first `episodes_per_env` episodes of each environment, without those lost because it raised; `advance` is
    called after every step with the number of those that have ended in it, lost ones included, and `show` before every
    step with the raw captions [B] of what is seen, of new episodes where any has begun.

    Raises OutOfTime."""
    finished: Episodes = {}
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
    obs, captions = env.reset()
    while (counted := env.running_episodes < episodes_per_env).any():
        if is_time_up():
            raise OutOfTime
        numbers = env.running_episodes
        show(captions)
        step = env.step(player.act(obs, counted))
        returns += step.rewards
        lengths += 1
        for end in step.ends:
            i = end.index
            if counted[i]:
                finished[i, int(numbers[i])] = EpisodeStatistics(
                    episode_return=float(returns[i]),
                    length=int(lengths[i]),
                    terminated=bool(step.terminated[i]),
                    info=end.info,
                )
        over = [*(end.index for end in step.ends), *step.losses]
        if over:
            returns[over], lengths[over] = 0.0, 0
            player.restart(over)
        advance(int(counted[over].sum()))
        begun = {end.index: end.reset_caption for end in step.ends} | step.losses
        obs, captions = step.obs, [begun.get(i, caption) for i, caption in enumerate(step.captions)]
    return finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over episodes with its 95 % interval."""

    mean: float
    low: float
    high: float


def summarise(episodes: Episodes) -> dict[str, Estimate]:
    """Return, length, and the environment's own metrics by name; Wilson intervals for `success`, else bootstrap."""
    columns = _columns(map(metrics_of, episodes.values()))
    return {name: (_wilson if name == "success" else _bootstrap)(values) for name, values in columns.items()}


def differences(first: Episodes, second: Episodes) -> dict[str, Estimate]:
    """First player minus second by metric name, over the games that both have finished, with bootstrap intervals."""
    pairs = [(metrics_of(first[game]), metrics_of(second[game])) for game in first.keys() & second.keys()]
    columns = _columns(
        {name: ours[name] - theirs[name] for name in ours.keys() & theirs.keys()} for ours, theirs in pairs
    )
    return {name: _bootstrap(values) for name, values in columns.items()}


def metrics_of(episode: EpisodeStatistics) -> dict[str, float]:
    """Return, length, and the environment's own metrics by name."""
    return {"return": episode.episode_return, "length": float(episode.length), **dict(sorted(episode.info.items()))}


def _columns(rows: Iterable[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """The values of each metric, over the rows that have it."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def _bootstrap(values: np.ndarray, resamples: int = 2000) -> Estimate:
    """Percentile bootstrap of the mean (Efron 1979); seeded, so the same episodes give the same interval."""
    means = np.random.default_rng(0).choice(values, (resamples, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(mean=float(values.mean()), low=float(low), high=float(high))


def _wilson(values: np.ndarray, z: float = 1.96) -> Estimate:
    """Wilson's score interval of a proportion (Wilson 1927); at 0 and 1 the bootstrap interval would have no width."""
    n, p = len(values), float(values.mean())
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Estimate(mean=p, low=max(0.0, (centre - spread) / scale), high=min(1.0, (centre + spread) / scale))
