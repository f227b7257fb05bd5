"""Delphi's arms of `sanity`: one `delphi train` per task and seed, its final policy played, and a random player beside
it.

Invariant: what is played in evaluation is the last checkpoint's policy, drawn from as in training, on seeds that
training never uses.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from actors.environments.factory import make_environment
from actors.policy import PolicyNet, load_weights
from cluster.verbs.bench import CHECKOUT
from configs.loading import load_config
from configs.schema import RunConfig
from learner.checkpoint import load_latest
from learner.evaluation import PolicyPlayer, RandomPlayer, play, summarise
from tests.benchmarks.sanity_tasks import COMMON, CURVE_POINTS, EVALUATION_ENVS, EVALUATION_EPISODES, Task

UPDATE_FIGURES = (
    "update_kl",
    "clip_fraction",
    "explained_variance",
    "entropy",
    "grad_clipped_fraction",
    "policy_state_information",
)
"""Means over a run's lines, which say how the learner fared."""


def settings(task: Task, seed: int, more: Sequence[str]) -> list[str]:
    """Overrides of a run, but for its directory."""
    return [
        *COMMON,
        f"env.id={task.env_id}",
        f"env.options={json.dumps(dict(task.env_options))}",
        f"env.max_episode_steps={task.max_episode_steps}",
        f"total_env_steps={task.env_steps}",
        f"logging.interval_env_steps={task.env_steps // CURVE_POINTS}",
        f"seed={seed}",
        *task.overrides,
        *more,
    ]


def train_and_evaluate(task: Task, seed: int, folder: Path, more: Sequence[str]) -> dict[str, Any]:
    """As the reference's function of this name; the run's directory is removed. RuntimeError where training fails."""
    overrides = settings(task, seed, more)
    shutil.rmtree(folder, ignore_errors=True)  # what was stopped starts anew: these runs are short
    trained = subprocess.run(
        [sys.executable, "-m", "cluster.train", *overrides, f"run_dir={folder}"],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if trained.returncode:
        raise RuntimeError(f"training failed: {(trained.stderr.strip().splitlines() or ['no message'])[-1]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    state = load_latest(folder / "checkpoints")
    assert state is not None
    figures = evaluate(load_config(overrides=overrides), task, seed, state["learner"]["weights"])
    shutil.rmtree(folder)
    points = [(line["env_steps"], line["episode_return_extrinsic_mean"]) for line in lines]
    return {
        **figures,
        "curve": [[steps, round(value, 4)] for steps, value in points if value is not None],
        "updates": {name: _mean([line.get(name) for line in lines]) for name in UPDATE_FIGURES},
        "time_s": round(summary["time_s"], 1),
        "env_steps": summary["env_steps"],
    }


def evaluate(config: RunConfig, task: Task, seed: int, weights: Mapping[str, Any] | None) -> dict[str, float]:
    """`final` return (and `success`, where the environment says) of the policy with `weights`, or of a random player
    without."""
    torch.set_num_threads(1)
    env_config = replace(config.env, options={**task.env_options, **task.evaluation_options})
    env = make_environment(
        env_config, num_envs=EVALUATION_ENVS, run_seed=seed, worker_index=0, stream="eval", policy=config.policy
    )
    try:
        player: PolicyPlayer | RandomPlayer = RandomPlayer(env.spec.num_actions, EVALUATION_ENVS, seed)
        if weights is not None:
            net = PolicyNet(env.spec, config.policy)
            load_weights(net, weights)
            player = PolicyPlayer(net, EVALUATION_ENVS, seed)
        figures = summarise(play(env, player, EVALUATION_EPISODES // EVALUATION_ENVS))
    finally:
        env.close()
    names = {"return": "final", "success": "success"}
    return {names[name]: figure.mean for name, figure in figures.items() if name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return round(sum(there) / len(there), 5) if there else None
