"""Rewards that are no numbers: updates that would spread them are skipped, and no weight is ever touched by one."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.launch import launch
from configs.loading import load_config
from configs.reward_schema import RewardConfig
from configs.schema import LearnerConfig
from learner.checkpoint import load_latest
from learner.update import Learner
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.learner.toy_rollouts import RECALL_SPEC, SMALL_POLICY, at_version, random_rollout

pytestmark = pytest.mark.faults
REWARD = PublishedReward.of(RewardTable.build(np.array([11, 12], np.uint64), np.array([1.0, 0.0]), (0, 1)))


def make_learner() -> Learner:
    config = LearnerConfig(learning_rate=3e-3, epochs=1, minibatches=1, precision="fp32", device="cpu")
    return Learner(RECALL_SPEC, SMALL_POLICY, config, RewardConfig(), run_epoch=0, seed=1)


def test_poisoned_rollouts_leave_no_trace_in_what_is_learnt(record_recovery: Callable[..., None]) -> None:
    """The same rollouts with poisoned ones between them give the same bits as without."""
    clean, poisoned = make_learner(), make_learner()
    fields, values = ("extrinsic_rewards", "behaviour_values", "behaviour_logits"), (math.nan, math.inf, -math.inf)
    skipped = 0
    for number in range(30):
        if number % 3 == 1:
            bad = random_rollout(seed=1000 + number, policy_version=poisoned.policy_version)
            field = fields[number // 3 % 3]
            array = getattr(bad, field).copy()
            array[number % 5, number % 3] = values[0] if field == "extrinsic_rewards" else values[number // 9 % 3]
            before = poisoned.snapshot()
            poisoned.step([dataclasses.replace(bad, **{field: array})], REWARD)
            skipped += 1
            assert poisoned.snapshot().policy_version == before.policy_version, "nothing new is published"
        good = random_rollout(seed=number)
        clean.step([at_version(good, clean.policy_version)], REWARD)
        poisoned.step([at_version(good, poisoned.policy_version)], REWARD)
        assert all(np.isfinite(weights).all() for weights in poisoned.snapshot().weights.values())
    assert poisoned.metrics() == {"learner_updates": 30, "updates_skipped_nonfinite": skipped}
    mine, theirs = poisoned.snapshot().weights, clean.snapshot().weights
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    holds = (
        "the update is skipped and counted; weights and published policies are those of a learner that never saw it,"
        " bit for bit"
    )
    record_recovery("NaN or infinite gradients", holds, None)


def test_a_run_whose_environment_pays_no_numbers_still_learns(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    settings = [
        f"run_dir={tmp_path / 'run'}",
        "total_env_steps=20000",
        "env.id=tests.toy_environments:PoisonedCorridor-v0",
        "env.options={length: 6}",
        "env.max_episode_steps=40",
        "actors.envs_per_worker=32",
        "actors.rollout_steps=8",
        "policy.core=none",
        "policy.hidden_size=64",
        "learner.learning_rate=0.002",
        "learner.gamma=0.95",
        "learner.precision=fp32",
        "actors.precision=fp32",
        "reward_model.name=none",
        "reward.extrinsic_coefficient=3.0",
        "checkpoint.interval_env_steps=5000",
        "logging.console=quiet",
        "logging.tensorboard=false",
    ]
    assert launch(load_config(preset="debug", overrides=settings)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["environment_errors"] > 10
    assert lines[-1]["updates_skipped_nonfinite"] == 0, "nothing of it reaches the learner"
    assert lines[-1]["episode_length_mean"] < 7, "five steps are the shortest way; a random walk takes thirty"
    state: dict[str, Any] | None = load_latest(tmp_path / "run" / "checkpoints")
    assert state is not None
    assert all(np.isfinite(np.asarray(weights)).all() for weights in state["learner"]["weights"].values())
    assert state["loop"]["env_steps"] >= 20_000
    record_recovery(
        "an environment that pays NaN at random",
        "the task is still learnt; each is an environment error, counted, and reaches no update",
        None,
    )
