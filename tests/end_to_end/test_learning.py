"""A sparse task is solved because of what the judge says, and not without it.

The corridor pays only at its far end, which random actions never reach within an episode; humming yields ever new
captions and leads nowhere. The control with permuted judgements keeps the amount of reward and destroys its meaning.
"""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.launch import launch
from cluster.run.directory import find_run
from configs.loading import load_config

LENGTH, TUNES = 14, 64
ADVANCES = [f"You advance to cell {n}." for n in range(1, LENGTH)]
OTHERS = [
    *(f"You slide back from cell {n}." for n in range(LENGTH - 1)),
    *(f"You hum tune {n}." for n in range(TUNES)),
    "You reach the treasure!",
    "You enter the corridor.",
]


def train(run_dir: Path, *overrides: str) -> dict[str, Any]:
    settings = [
        f"run_dir={run_dir}",
        "total_env_steps=12800",
        "env.id=tests.toy_environments:HummingCorridor-v0",
        f"env.options={{length: {LENGTH}, num_tunes: {TUNES}}}",
        "env.max_episode_steps=40",
        "actors.envs_per_worker=32",
        "actors.rollout_steps=20",
        "policy.core=none",
        "policy.hidden_size=64",
        "learner.learning_rate=0.002",
        "learner.gamma=0.95",
        "learner.precision=fp32",
        "actors.precision=fp32",
        "reward.extrinsic_coefficient=3.0",
        "reward.intrinsic_coefficient=0.3",
        "checkpoint.interval_env_steps=0",
        "logging.console=quiet",
        "logging.tensorboard=false",
        *overrides,
    ]
    assert launch(load_config(preset="debug", overrides=settings)) == 0
    run, _ = find_run(str(run_dir))
    return json.loads(run.summary.read_text())


def script(positives: list[str]) -> str:
    return f"service.script='^({'|'.join(re.escape(text) for text in positives)})$=0.9'"


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_judge_is_why_a_sparse_task_is_solved(seed: int, tmp_path: Path) -> None:
    permuted = random.Random(seed).sample([*ADVANCES, *OTHERS], len(ADVANCES))
    judged = train(tmp_path / "judged", f"seed={seed}", script(ADVANCES))
    alone = train(tmp_path / "alone", f"seed={seed}", "reward_model.name=none")
    control = train(tmp_path / "permuted", f"seed={seed}", script(permuted))
    returns = [summary["episode_return_extrinsic_mean"] for summary in (judged, alone, control)]
    assert returns[0] > 0.9, returns
    assert max(returns[1:]) < 0.1, returns
    assert judged["annotations_total"] >= len(ADVANCES)
    assert {caption["text"] for caption in judged["top_rewarded"]} == set(ADVANCES) - {ADVANCES[-1]}


@pytest.mark.parametrize(
    "model",
    [
        ["reward_model.name=classification"],
        ["reward_model.name=ranking", "reward_model.epsilon_quantile=0.8", "reward_model.clip=2"],
    ],
    ids=["classification", "ranking"],
)
def test_networks_trained_beside_the_learner_solve_it_too(model: list[str], tmp_path: Path) -> None:
    training = ["reward_model.steps_per_turn=10", "reward_model.batch_size=16"]
    summary = train(tmp_path / "run", "seed=1", "total_env_steps=16640", script(ADVANCES), *model, *training)
    assert summary["episode_return_extrinsic_mean"] > 0.9
    rewarded = {caption["text"] for caption in summary["top_rewarded"][: len(ADVANCES) - 1]}
    assert rewarded == set(ADVANCES) - {ADVANCES[-1]}
