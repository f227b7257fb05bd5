"""ONI's presets: its documented settings as loaded, and each one trained for a few updates in this process."""

import json
from pathlib import Path

import pytest

from cluster.launch import launch
from configs.loading import PRESETS, load_config
from learner.checkpoint import load_latest

TASKS = {
    "oni_score": ("Delphi/NetHackScoreExtended-v0", 0.1),
    "oni_oracle": ("Delphi/NetHackOracle-v0", 10.0),
    "oni_staircase3": ("Delphi/NetHackStaircaseLvl3-v0", 10.0),
    "oni_staircase4": ("Delphi/NetHackStaircaseLvl4-v0", 10.0),
    "oni_reward_free": ("Delphi/NetHackScoreExtended-v0", 0.0),
}
SMALL = [
    *("actors.num_workers=1", "actors.envs_per_worker=4", "actors.rollout_steps=16", "learner.rollouts_per_batch=2"),
    *(
        "service.engine=scripted",
        "service.script='door|see|kill|stairs=0.9'",
        "service.store=memory",
        "annotator.labels_per_turn=64",
    ),
    *(
        "cluster.mode=inline",
        "learner.torch_threads=1",
        "learner.device=cpu",
        "logging.console=quiet",
        "logging.tensorboard=false",
    ),
]


@pytest.mark.parametrize("name", TASKS)
def test_a_preset_holds_what_is_documented_of_oni(name: str) -> None:
    config = load_config(preset=name)
    env_id, extrinsic_coefficient = TASKS[name]
    actors, policy, learner, reward = config.actors, config.policy, config.learner, config.reward
    assert (config.env.id, config.env.max_episode_steps, reward.extrinsic_coefficient) == (
        env_id,
        5000,
        extrinsic_coefficient,
    )
    assert actors.num_workers * actors.envs_per_worker == 480
    assert learner.rollouts_per_batch * actors.rollout_steps * actors.envs_per_worker == 4096
    assert actors.rollout_steps == 32
    assert (learner.learning_rate, learner.adam_beta1, learner.adam_beta2, learner.adam_epsilon) == (
        1e-4,
        0.9,
        0.999,
        1e-6,
    )
    assert (learner.gamma, learner.vtrace_rho_clip, learner.vtrace_c_clip, learner.rho_weighted_advantage) == (
        0.99,
        1.0,
        1.0,
        True,
    )
    assert (learner.ppo_clip, learner.value_clip, learner.ratio_clamp) == (0.1, 1.0, 20.0)
    assert (learner.entropy_coefficient, learner.value_coefficient, learner.max_grad_norm) == (0.003, 0.5, 4.0)
    assert (learner.epochs, learner.minibatches, learner.trace_lambda, learner.final_learning_rate_fraction) == (
        1,
        1,
        1.0,
        1.0,
    )
    assert learner.normalize_advantages
    assert not learner.normalize_returns
    assert not policy.core_skip
    assert (policy.network, policy.core, policy.core_size, policy.hidden_size, policy.head_gain) == (
        "rendered_crop",
        "gru",
        512,
        512,
        1.0,
    )
    assert policy.encoder_gain == 1.0
    scale = 0.1 if extrinsic_coefficient == 10.0 else 1.0
    assert (reward.extrinsic_scale, reward.extrinsic_clip, reward.count_exponent) == (scale, 10.0, 3.0)
    assert (config.reward_model.name, config.reward_model.output) == ("retrieval", "binary")


@pytest.mark.parametrize("name", TASKS)
def test_every_number_of_a_preset_that_is_not_onis_says_why(name: str) -> None:
    """Lines without a comment hold what `test_a_preset_holds_what_is_documented_of_oni` knows of ONI."""
    documented = {
        "extends",
        "id",
        "network",
        "core",
        "core_size",
        "hidden_size",
        "head_gain",
        "encoder_gain",
        "name",
        "output",
        "extrinsic_coefficient",
    }
    documented |= {
        "core_skip",
        "learning_rate",
        "epochs",
        "minibatches",
        "trace_lambda",
        "normalize_returns",
        "value_coefficient",
    }
    for line in (PRESETS / f"{name}.yaml").read_text().splitlines():
        key, _, value = line.split("#")[0].strip().partition(":")
        if value.strip() and key not in documented:
            assert "#" in line, line


@pytest.mark.parametrize("name", TASKS)
def test_a_preset_trains_in_small(name: str, tmp_path: Path) -> None:
    overrides = [*SMALL, f"run_dir={tmp_path}", "total_env_steps=512", "logging.interval_env_steps=256"]
    width = 512 if name == "oni_score" else 32
    overrides += [f"policy.core_size={width}", f"policy.hidden_size={width}"]
    assert launch(load_config(preset=name, overrides=overrides)) == 0
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["env_steps"] == 512
    assert (last["learner_updates"], last["updates_skipped_nonfinite"]) == (4, 0)
    assert last["annotations_total"] > 10
    assert last["intrinsic_reward_mean"] > 0
    assert last["approx_kl"] is not None
    state = load_latest(tmp_path / "checkpoints")
    assert state is not None
    weights = state["learner"]["weights"]
    assert weights["encoder.project.0.weight"].shape == (width, 1152)
    assert weights["policy_head.weight"].shape == (28, width)
