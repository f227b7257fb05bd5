"""The reference arm of `sanity`: Stable-Baselines3's PPO on one task and seed, by a Python that has it; one JSON object
on the last line.

Nothing of Delphi is imported but the tasks and their environments, so the two arms share what is played and nothing
else.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from tests.benchmarks.sanity_tasks import (
    CURVE_EPISODES,
    CURVE_POINTS,
    EVALUATION_ENVS,
    EVALUATION_EPISODES,
    TASKS,
    Task,
)

NEEDED = ("torch", "stable_baselines3", "gymnasium")
NOT_FOUND = 3
"""Exit code where a package is missing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 3 a package is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", required=True, choices=[name for name, task in TASKS.items() if task.reference])
    parser.add_argument("--seed", required=True, type=int)
    arguments = parser.parse_args(argv)
    try:
        for module in NEEDED:
            importlib.import_module(module)
        print(json.dumps(train_and_evaluate(TASKS[arguments.task], arguments.seed)))
    except (ImportError, ValueError) as error:
        print(f"{sys.executable}: {error}", file=sys.stderr)
        return NOT_FOUND
    return 0


def make(task: Task, *, evaluates: bool) -> gymnasium.Env:
    """One environment as gymnasium makes it."""
    options = {**task.env_options, **(task.evaluation_options if evaluates else {})}
    env_id = task.reference_env_id or task.env_id
    return gymnasium.make(env_id, max_episode_steps=task.max_episode_steps or None, disable_env_checker=True, **options)


def train_and_evaluate(task: Task, seed: int) -> dict[str, Any]:
    """`final` return of `EVALUATION_EPISODES` episodes under the trained policy, and the `curve` of training as [steps,
    mean return]."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

    torch.set_num_threads(1)
    settings = dict(task.reference)
    num_envs, normalizes = settings.pop("num_envs"), settings.pop("normalize_reward", False)
    env: VecEnv = DummyVecEnv([lambda: Monitor(make(task, evaluates=False)) for _ in range(num_envs)])
    if normalizes:
        env = VecNormalize(env, norm_obs=False, norm_reward=True, gamma=settings["gamma"])
    for name, value in settings.items():
        if isinstance(value, str) and value.startswith("lin_"):
            settings[name] = _falling(float(value.removeprefix("lin_")))
    model = PPO(env=env, seed=seed, device="cpu", **settings)
    curve, began = Curve(task.env_steps), time.perf_counter()
    model.learn(task.env_steps, callback=curve.note)
    time_s = time.perf_counter() - began
    env.close()
    return {
        **evaluate(task, model, seed),
        "curve": curve.points,
        "time_s": round(time_s, 1),
        "env_steps": model.num_timesteps,
    }


def _falling(start: float) -> Callable[[float], float]:
    return lambda remaining: start * remaining


class Curve:
    """The mean return of the newest episodes, at equal distances of steps."""

    def __init__(self, env_steps: int) -> None:
        self.points: list[list[float]] = []
        self._every = self._next = env_steps // CURVE_POINTS
        self._returns: deque[float] = deque(maxlen=CURVE_EPISODES)

    def note(self, scope: dict[str, Any], _: Any) -> bool:
        """After each step of all environments; `scope` is the training loop's local variables."""
        self._returns.extend(info["episode"]["r"] for info in scope["infos"] if "episode" in info)
        steps = int(scope["self"].num_timesteps)
        if steps >= self._next:
            self._next += self._every
            if self._returns:
                self.points.append([steps, round(float(np.mean(self._returns)), 4)])
        return True


def evaluate(task: Task, model: Any, seed: int) -> dict[str, float]:
    """Actions are drawn from the policy, as in training; every environment plays as many episodes, one after
    another."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([lambda: make(task, evaluates=True) for _ in range(EVALUATION_ENVS)])
    env.seed(10_000 + seed)
    left, returns = np.full(EVALUATION_ENVS, EVALUATION_EPISODES // EVALUATION_ENVS), np.zeros(EVALUATION_ENVS)
    finished: list[float] = []
    obs = env.reset()
    while left.any():
        actions, _ = model.predict(obs, deterministic=False)
        obs, rewards, dones, _ = env.step(actions)
        returns += rewards
        finished += returns[dones & (left > 0)].tolist()
        left -= dones & (left > 0)
        returns[dones] = 0.0
    env.close()
    return {"final": float(np.mean(finished))}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
