"""What a player did in the games of an evaluation: enough to play each of them again, step by step.

Invariant: an environment's actions are those of all its episodes in order, lost ones included, so that also an
environment that remembers earlier episodes can be brought to the same place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.environments.vector import VectorEnvironment
from actors.rollout import EpisodeStatistics
from learner.evaluation import Episodes, LookingPlayer, Player, PolicyPlayer


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedGames:
    """The games of one player in one vector environment (evaluation -> kept file, replay)."""

    episodes: Episodes
    actions: np.ndarray  # [N] ints: the actions of all games, one game after the other
    values: np.ndarray | None  # [N] f32: the player's value estimate before each action; None where it has none
    places: np.ndarray  # [G, 3] i64: environment, episode and number of actions of each of these games, in order
    frequencies: np.ndarray | None  # [A] f64: average action frequencies of a policy or a judge
    information: float | None  # theirs between state and action, in nats

    def of(self, env: int, episode: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Actions [T] and values [T] of one game, and the actions of all that its environment played before."""
        ends = self.places[:, 2].cumsum()
        row = int(np.flatnonzero((self.places[:, 0] == env) & (self.places[:, 1] == episode))[0])
        first = int(np.flatnonzero(self.places[:, 0] == env)[0])
        begin, end = int(ends[row] - self.places[row, 2]), int(ends[row])
        before = self.actions[int(ends[first] - self.places[first, 2]) : begin]
        return self.actions[begin:end], None if self.values is None else self.values[begin:end], before

    def state_dict(self) -> dict[str, Any]:
        """Nested dict of arrays and JSON values."""
        rows = [
            [env, episode, played.episode_return, played.length, played.terminated, played.info]
            for (env, episode), played in self.episodes.items()
        ]
        names = ("actions", "values", "places", "frequencies", "information")
        return {"episodes": rows, **{name: getattr(self, name) for name in names}}

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> "PlayedGames":
        """The inverse of `state_dict`."""
        episodes = {
            (env, episode): EpisodeStatistics(episode_return=total, length=length, terminated=terminated, info=info)
            for env, episode, total, length, terminated, info in state["episodes"]
        }
        return PlayedGames(**{**state, "episodes": episodes})


class LoggedPlayer:
    """A player whose actions are noted."""

    def __init__(self, player: Player, env: VectorEnvironment) -> None:
        self._player, self._env = player, env
        self._numbers: list[np.ndarray] = []  # per step, [B] each
        self._actions: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self._dtype = np.min_scalar_type(env.spec.num_actions)

    def act(self, obs: Mapping[str, np.ndarray], counted: np.ndarray) -> np.ndarray:
        """See `Player`."""
        actions = self._player.act(obs, counted)
        self._numbers.append(self._env.running_episodes.astype(np.int32))
        self._actions.append(actions.astype(self._dtype))
        if isinstance(self._player, PolicyPlayer):
            self._values.append(self._player.values)
        return actions

    def restart(self, rows: Sequence[int]) -> None:
        """See `Player`."""
        self._player.restart(rows)

    def games(self, episodes: Episodes, episodes_per_env: int) -> PlayedGames:
        """The games up to each environment's episode `episodes_per_env`; `episodes` are those that have finished."""
        numbers = np.stack(self._numbers, 1)  # [B, T]
        kept = numbers < episodes_per_env
        places = []
        for env, of_env in enumerate(numbers):
            played, sizes = np.unique(of_env[kept[env]], return_counts=True)
            places += [[env, episode, size] for episode, size in zip(played.tolist(), sizes.tolist(), strict=True)]
        looking = self._player if isinstance(self._player, LookingPlayer) else None
        return PlayedGames(
            episodes=episodes,
            actions=np.stack(self._actions, 1)[kept],
            values=np.stack(self._values, 1)[kept] if self._values else None,
            places=np.array(places, np.int64).reshape(-1, 3),
            frequencies=looking.frequencies if looking else None,
            information=looking.state_information if looking else None,
        )
