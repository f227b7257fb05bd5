"""Rewards of B games at once, with the same arithmetic as the tasks' own `_reward_fn` (NLE 1.3.0, MiniHack 1.0.2, ONI's
tasks).

Invariant: only the arrays that the engines write are read, before a step and after it, so a game's reward does not
depend on the other games; sums have the task's order and precision (f64).
"""

from typing import Any

import numpy as np

from actors.environments.nethack.crop import MAP_CELLS
from actors.environments.nethack.episode_stats import GOLD, SCORE, TIME, LevelTiles
from actors.environments.nethack.tasks import GOAL_REWARD
from actors.environments.vector import GoalReward

HUNGER = 7  # index into internal
GOAL = 2  # end status
PENALTY_MODES = ("constant", "linear", "square", "always")
"""NLE's `exp` doubles without bound and soon fails: it is left to NLE."""


class Rewards:
    """The score difference, without a time penalty (NLE's environment without a task)."""

    goal: float | None = None
    """The reward for the task's goal; None if it has none that is paid once, or the environment decides it."""

    def __init__(self, env: Any, screens: dict[str, np.ndarray]) -> None:
        self._env, self._blstats, self._internal = env, screens["blstats"], screens["internal"]
        self._glyphs = screens["glyphs"][:, :MAP_CELLS]
        self._last = self._blstats.copy()

    def start(self, i: int) -> None:
        """Game `i` has been reset."""

    def begin(self) -> None:
        """Save the values that the next step is compared with."""
        self._last = self._blstats.copy()

    def pay(self, statuses: np.ndarray, playing: np.ndarray, goals: list[int]) -> np.ndarray:
        """Rewards [B] f64 of the last step. `statuses` [B]: how episodes end; `playing` [B] bool: the engine is in a
        normal game; `goals`: games that reached the goal of one of ONI's tasks in this step."""
        return self._difference(SCORE, playing)

    @staticmethod
    def max_penalty(env: Any, num_steps: int) -> float:
        """Sum of the penalties of `num_steps` steps, each at its worst; at most 0."""
        return 0.0

    def _difference(self, index: int, playing: np.ndarray) -> np.ndarray:
        # Before a game starts and after it has ended, its status line is zero.
        return np.where(playing, self._blstats[:, index] - self._last[:, index], 0.0)


class ScoreRewards(Rewards):
    """The score difference, then the penalty for steps that take no game time, also after the game has ended."""

    def __init__(self, env: Any, screens: dict[str, np.ndarray]) -> None:
        super().__init__(env, screens)
        # NLE keeps this count from one episode to the next.
        self._frozen_steps = np.zeros(len(self._blstats), np.int64)

    def pay(self, statuses: np.ndarray, playing: np.ndarray, goals: list[int]) -> np.ndarray:
        return self._difference(SCORE, playing) + self._penalty()

    @staticmethod
    def max_penalty(env: Any, num_steps: int) -> float:
        """The worse of two cases: game time stands still in every step, or one turn passes in every step."""
        n, mode = float(num_steps), env.penalty_mode
        frozen = {
            "linear": n * (n + 1) / 2,
            "square": n * (n + 1) * (2 * n + 1) / 6,
            "exp": 2 ** min(n + 1, 1000) - 2,
        }.get(mode, n)
        moving = n * (env.penalty_time + (env.penalty_step if mode in ("always", "exp") else 0.0))
        return min(0.0, frozen * env.penalty_step, moving)

    def _penalty(self, where: np.ndarray | bool = True) -> np.ndarray:
        """The time penalty; frozen steps are counted only in the games of `where`."""
        turns = self._blstats[:, TIME] - self._last[:, TIME]
        frozen = (self._frozen_steps + 1) * (turns == 0)
        np.copyto(self._frozen_steps, frozen, where=where)
        mode, per_step = self._env.penalty_mode, self._env.penalty_step
        if mode == "constant":
            penalty = np.where(frozen > 0, per_step, 0)
        else:
            factor = {"linear": frozen, "square": frozen**2, "always": np.ones_like(frozen)}[mode]
            penalty = 0 + factor * per_step
        return penalty + turns * self._env.penalty_time


class GoldRewards(ScoreRewards):
    """The gold difference and the penalty, both in a normal game only, else zero."""

    def pay(self, statuses: np.ndarray, playing: np.ndarray, goals: list[int]) -> np.ndarray:
        return np.where(playing, self._gain(playing) + self._penalty(playing), 0.0)

    def _gain(self, playing: np.ndarray) -> np.ndarray:
        return self._difference(GOLD, playing)


class EatRewards(GoldRewards):
    """The nutrition eaten, and the penalty."""

    def begin(self) -> None:
        super().begin()
        self._hunger = self._internal[:, HUNGER].copy()

    def _gain(self, playing: np.ndarray) -> np.ndarray:
        return np.maximum(0, self._internal[:, HUNGER] - self._hunger)


class ScoutRewards(GoldRewards):
    """Tiles seen for the first time on the level, and the penalty."""

    def __init__(self, env: Any, screens: dict[str, np.ndarray]) -> None:
        super().__init__(env, screens)
        self._tiles = LevelTiles(len(self._blstats))

    def start(self, i: int) -> None:
        self._tiles.start(i)

    def _gain(self, playing: np.ndarray) -> np.ndarray:
        return self._tiles.update(self._glyphs, self._blstats, playing)


class StaircaseRewards(ScoreRewards):
    """NLE's staircase and oracle tasks: 1 if the episode ends at its goal, and the penalty."""

    goal = 1.0

    def pay(self, statuses: np.ndarray, playing: np.ndarray, goals: list[int]) -> np.ndarray:
        return (statuses == GOAL) + self._penalty()


class MiniHackRewards(ScoreRewards):
    """MiniHack without a reward manager: `reward_win` at the goal, `reward_lose` at any other end, and the penalty."""

    def pay(self, statuses: np.ndarray, playing: np.ndarray, goals: list[int]) -> np.ndarray:
        win, lose = self._env.reward_win, self._env.reward_lose
        return np.where(statuses == GOAL, win, np.where(statuses == 0, 0, lose)) + self._penalty()


class GoalRewards(Rewards):
    """ONI's goals: paid once, unless the agent died in the same step; zero otherwise."""

    goal = GOAL_REWARD

    def pay(self, statuses: np.ndarray, playing: np.ndarray, goals: list[int]) -> np.ndarray:
        rewards = np.zeros(len(statuses))
        rewards[[i for i in goals if statuses[i] != 1]] = GOAL_REWARD
        return rewards


REWARDS: dict[str, type[Rewards]] = {
    "nle.env.base.NLE._reward_fn": Rewards,
    "nle.env.tasks.NetHackScore._reward_fn": ScoreRewards,
    "nle.env.tasks.NetHackGold._reward_fn": GoldRewards,
    "nle.env.tasks.NetHackEat._reward_fn": EatRewards,
    "nle.env.tasks.NetHackScout._reward_fn": ScoutRewards,
    "nle.env.tasks.NetHackStaircase._reward_fn": StaircaseRewards,
    "minihack.base.MiniHack._reward_fn": MiniHackRewards,
    "actors.environments.nethack.tasks.Goal._reward_fn": GoalRewards,
}
"""By the task's `_reward_fn`."""


def implementation(env: Any, method: str) -> str:
    """Where a method of an environment comes from: module, class and name."""
    function = getattr(env, method)
    return f"{function.__module__}.{function.__qualname__}"


def goal_reward(env: Any, step_limit: int) -> GoalReward | None:
    """How the task of `env` rewards its goal in episodes of `step_limit` steps; None without goal, or if custom."""
    rewards = REWARDS.get(implementation(env, "_reward_fn"), Rewards)
    at_goal = rewards.goal
    if rewards is MiniHackRewards and env.reward_manager is None:
        at_goal = env.reward_win
    if at_goal is None:
        return None
    penalty = float(rewards.max_penalty(env, step_limit))
    return GoalReward(reward=float(at_goal), max_penalty=penalty, step_limit=step_limit)
