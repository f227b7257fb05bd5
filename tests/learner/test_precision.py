"""What bf16 and shared encodings may change of an update on real observations: rounding, and no more."""

import functools

import numpy as np
import pytest

from actors.environments.vector import EnvironmentSpec
from actors.rollout import Rollout
from cluster.wiring import build_worker
from configs.loading import load_config
from configs.schema import RunConfig
from learner.update import Learner
from reward_models.published import PublishedReward
from reward_models.table import RewardTable

NUM_UPDATES = 3


def make_config(*changes: str) -> RunConfig:
    return load_config(
        overrides=[
            "actors.envs_per_worker=16",
            "actors.rollout_steps=16",
            # On every processor the same: V-trace clips ratios at 1, so rounding that only one of worker and learner
            # has biases the targets.
            "actors.precision=bf16",
            "env.max_episode_steps=40",
            "policy.head_gain=1",
            "learner.epochs=1",
            "learner.minibatches=1",
            "seed=3",
            *changes,
        ]
    )


@functools.cache
def games() -> tuple[EnvironmentSpec, tuple[Rollout, ...]]:
    """Rollouts of NetHack, with episodes that end within them, of a policy that prefers some actions clearly."""
    config = make_config()
    worker = build_worker(config, 0, incarnation="0", stream="train")
    try:
        spec = worker.env.spec
        first = Learner(spec, config.policy, config.learner, config.reward, run_epoch=0, seed=1).snapshot()
        rollouts = tuple(worker.collect(first, None)[0] for _ in range(NUM_UPDATES))
    finally:
        worker.close()
    assert any((rollout.terminated | rollout.truncated)[:-1].any() for rollout in rollouts)
    return spec, rollouts


def train(*changes: str, num_updates: int = 1) -> tuple[dict[str, float], np.ndarray, dict[str, np.ndarray]]:
    """Metrics of the first update, its gradient (Adam's first moments, all parameters), and the weights in the end."""
    spec, rollouts = games()
    config = make_config("learner.device=cpu", *changes)
    learner = Learner(spec, config.policy, config.learner, config.reward, run_epoch=0, seed=1)
    ids = np.unique(rollouts[0].caption_ids)
    reward = PublishedReward.of(RewardTable.build(ids, np.linspace(0, 1, len(ids)), (0, 1)))
    metrics = learner.step([rollouts[0]], reward).metrics
    moments = [entry["exp_avg"].ravel() for entry in learner.state_dict()["adam"].values()]
    for rollout in rollouts[1:num_updates]:
        learner.step([rollout], reward)
    return metrics, np.concatenate(moments).astype(np.float64), learner.snapshot().weights


@pytest.mark.parametrize("reuse", ["true", "false"])
def test_an_update_in_bf16_has_the_loss_and_gradient_of_float32(reuse: str) -> None:
    metrics, gradient, _ = train("learner.precision=bf16", f"policy.reuse_crops={reuse}")
    exact_metrics, exact, _ = train("learner.precision=fp32", "policy.reuse_crops=false")
    for name in ("policy_loss", "value_loss", "entropy", "grad_norm"):
        assert metrics[name] == pytest.approx(exact_metrics[name], rel=0.005, abs=0.001), name
    assert np.linalg.norm(gradient - exact) < 0.01 * np.linalg.norm(exact)


def test_encoding_repeats_once_changes_the_gradient_by_rounding_only() -> None:
    _, gradient, _ = train("learner.precision=fp32", "policy.reuse_crops=true")
    _, exact, _ = train("learner.precision=fp32", "policy.reuse_crops=false")
    assert np.linalg.norm(gradient - exact) < 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_updates_on_real_games_give_the_same_bits_again(precision: str) -> None:
    one, again = (train(f"learner.precision={precision}", num_updates=NUM_UPDATES)[2] for _ in range(2))
    for name, weights in one.items():
        np.testing.assert_array_equal(weights, again[name], err_msg=name)
