import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.inference import BatchedInference
from actors.policy import PolicyNet, PolicySnapshot
from configs.reward_schema import MAIN_TERM, RewardConfig, TermConfig
from configs.schema import ActorsConfig, LearnerConfig, PolicyConfig
from learner import update
from learner.checkpoint import load_latest, save_checkpoint
from learner.update import Learner
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.learner.toy_rollouts import (
    RECALL_SPEC,
    RIGHT,
    SMALL_POLICY,
    WRONG,
    RecallGame,
    at_version,
    random_rollout,
    success_rate,
)

FAST = LearnerConfig(
    learning_rate=3e-3,
    gamma=0.9,
    epochs=1,
    minibatches=1,
    trace_lambda=1.0,
    normalize_returns=False,
    precision="fp32",
    device="cpu",
)
INTRINSIC_ONLY = RewardConfig(extrinsic_coefficient=0.0, intrinsic_coefficient=1.0)
KNOWN = np.array([RIGHT, WRONG], np.uint64)
REWARD = PublishedReward.of(RewardTable.build(KNOWN, np.array([1.0, 0.0]), (0, 1)))


def make_learner(
    config: LearnerConfig = FAST, *, policy: PolicyConfig = SMALL_POLICY, run_epoch: int = 0, seed: int = 1
) -> Learner:
    return Learner(RECALL_SPEC, policy, config, INTRINSIC_ONLY, run_epoch=run_epoch, seed=seed)


def train(learner: Learner, game: RecallGame, reward: PublishedReward, num_updates: int) -> float:
    """The success rate over the last 20 updates."""
    rates = []
    for number in range(num_updates):
        rollout = game.collect(learner.snapshot(), 16, number)
        learner.step([rollout], reward)
        rates.append(success_rate(rollout))
    return float(np.mean(rates[-20:]))


def step_n(learner: Learner, seeds: range) -> list[dict[str, float]]:
    return [
        learner.step([random_rollout(seed=seed, policy_version=learner.policy_version)], REWARD).metrics
        for seed in seeds
    ]


def assert_same(left: Any, right: Any) -> None:
    """Equal bit for bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    else:
        assert left == right


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_captions_at_the_end_of_an_episode_teach_what_must_be_remembered(core: str) -> None:
    policy = dataclasses.replace(SMALL_POLICY, core=core)
    learner, game = make_learner(policy=policy), RecallGame(32, policy)
    assert train(learner, game, REWARD, 150) > 0.95


def test_swapped_rewards_teach_the_opposite() -> None:
    swapped = PublishedReward.of(RewardTable.build(KNOWN, np.array([0.0, 1.0]), (0, 1)))
    assert train(make_learner(), RecallGame(32), swapped, 150) < 0.05


def test_without_memory_it_cannot_be_learnt() -> None:
    policy = dataclasses.replace(SMALL_POLICY, core="none")
    assert train(make_learner(policy=policy), RecallGame(32, policy), REWARD, 150) == pytest.approx(0.5, abs=0.1)


def test_every_update_is_a_new_version_and_the_snapshot_carries_it() -> None:
    learner = make_learner(run_epoch=3)
    before = learner.snapshot()
    assert before.policy_version == (3, 0)
    step_n(learner, range(2))
    after = learner.snapshot()
    assert after.policy_version == learner.policy_version == (3, 2)
    assert learner.metrics() == {"learner_updates": 2, "updates_skipped_nonfinite": 0}
    assert any((before.weights[name] != after.weights[name]).any() for name in before.weights)


def test_the_seed_decides_the_first_weights_and_leaves_torchs_generator_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = make_learner(seed=1), make_learner(seed=1), make_learner(seed=2)
    assert torch.equal(state, torch.get_rng_state())
    assert_same(one.snapshot().weights, same.snapshot().weights)
    assert (one.snapshot().weights["core.input.weight"] != other.snapshot().weights["core.input.weight"]).any()


@pytest.mark.parametrize("field", ["extrinsic_rewards", "behaviour_values", "behaviour_logits"])
def test_a_non_finite_update_is_skipped_counted_and_never_published(field: str) -> None:
    learner = Learner(RECALL_SPEC, SMALL_POLICY, FAST, RewardConfig(), run_epoch=0, seed=1)
    step_n(learner, range(1))
    before = learner.state_dict()
    bad = random_rollout()
    getattr(bad, field)[2, 1] = math.nan
    result = learner.step([at_version(bad, (0, 1))], REWARD)
    assert_same(before, {**learner.state_dict(), "skipped": 0})
    assert learner.metrics() == {"learner_updates": 1, "updates_skipped_nonfinite": 1}
    assert all(map(math.isfinite, result.metrics.values()))
    step_n(learner, range(1, 2))
    assert learner.policy_version == (0, 2)
    assert all(np.isfinite(array).all() for array in learner.snapshot().weights.values())


def test_a_truncation_without_its_final_value_is_skipped_rather_than_guessed() -> None:
    rollout = random_rollout()
    assert rollout.truncated.any()
    learner = make_learner()
    learner.step([dataclasses.replace(rollout, final_values=np.full_like(rollout.final_values, np.nan))], REWARD)
    assert learner.metrics()["updates_skipped_nonfinite"] == 1


def test_several_passes_are_one_version_and_go_further_than_one() -> None:
    game = RecallGame(8)
    rollout = game.collect(make_learner().snapshot(), 16)
    moved = []
    for epochs in (1, 4):
        learner = make_learner(dataclasses.replace(FAST, epochs=epochs, minibatches=2))
        metrics = learner.step([rollout], REWARD).metrics
        assert learner.policy_version == (0, 1)
        assert learner.metrics()["learner_updates"] == 2 * epochs
        moved.append(metrics["update_kl"])
    assert 0 < moved[0] < moved[1]


def test_targets_are_computed_once_per_batch_by_the_net_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    real = update.vtrace_targets
    monkeypatch.setattr(
        update, "vtrace_targets", lambda **inputs: seen.append(inputs["values"].clone()) or real(**inputs)
    )
    learner, rollout = make_learner(dataclasses.replace(FAST, epochs=3, minibatches=2)), random_rollout(num_envs=4)
    with torch.no_grad():
        core_state = {name: torch.from_numpy(array) for name, array in rollout.core_state.items()}
        ends = torch.from_numpy(rollout.terminated | rollout.truncated)
        reset_before = torch.cat([torch.zeros_like(ends[:1]), ends])
        before = learner.net({"sign": torch.from_numpy(rollout.obs["sign"])}, core_state, reset_before).values[:-1]
    learner.step([rollout], REWARD)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], before)


def test_one_bad_minibatch_is_skipped_and_the_others_count() -> None:
    learner = make_learner(dataclasses.replace(FAST, minibatches=3))
    bad = random_rollout()
    bad.behaviour_values[2, 1] = math.nan
    learner.step([bad], REWARD)
    assert learner.metrics() == {"learner_updates": 2, "updates_skipped_nonfinite": 1}
    assert learner.policy_version == (0, 1)
    assert all(np.isfinite(array).all() for array in learner.snapshot().weights.values())


def test_the_step_size_falls_linearly_with_the_progress_of_the_run() -> None:
    moved = {}
    for progress in (0.0, 0.5, 1.0):
        learner = make_learner(dataclasses.replace(FAST, final_learning_rate_fraction=0.2))
        before = learner.snapshot().weights["policy_head.bias"]
        learner.step([random_rollout()], REWARD, progress)
        moved[progress] = np.abs(learner.snapshot().weights["policy_head.bias"] - before).max()
    assert moved[0.5] == pytest.approx(0.6 * moved[0.0], rel=1e-3)
    assert moved[1.0] == pytest.approx(0.2 * moved[0.0], rel=1e-3)


@pytest.mark.parametrize("normalize_returns", [False, True])
def test_values_of_large_rewards_are_learnt_in_their_own_units(normalize_returns: bool) -> None:
    config = dataclasses.replace(FAST, normalize_returns=normalize_returns, value_clip=0.2)
    reward = RewardConfig(extrinsic_coefficient=0.0, intrinsic_coefficient=10_000.0)
    learner = Learner(RECALL_SPEC, SMALL_POLICY, config, reward, run_epoch=0, seed=1)
    game = RecallGame(32)
    for number in range(60):
        rollout = game.collect(learner.snapshot(), 16, number)
        learner.step([rollout], REWARD)
    assert (rollout.behaviour_values.mean() > 1000) == normalize_returns  # the returns are around 5,000


EVERYTHING = dataclasses.replace(
    FAST,
    epochs=2,
    minibatches=2,
    trace_lambda=0.9,
    normalize_returns=True,
    final_learning_rate_fraction=0.5,
    entropy_coefficient=0.01,
)


@pytest.mark.parametrize(
    "config", [dataclasses.replace(FAST, precision="fp32"), dataclasses.replace(FAST, precision="bf16"), EVERYTHING]
)
def test_resuming_continues_bit_for_bit_in_a_new_epoch(config: LearnerConfig) -> None:
    straight, first = make_learner(config), make_learner(config)
    straight_metrics = step_n(straight, range(6))
    step_n(first, range(3))
    saved = first.state_dict()
    step_n(first, range(3, 4))  # what the run did after its last checkpoint must leave no trace in it
    resumed = make_learner(config, run_epoch=1)
    resumed.load_state_dict(saved)
    assert resumed.policy_version == (1, 3)
    assert step_n(resumed, range(3, 6)) == straight_metrics[3:]
    assert_same(straight.state_dict(), {**resumed.state_dict(), "run_epoch": 0})


@pytest.mark.parametrize("core", ["lstm", "gru", "none"])
def test_a_resumed_policy_gives_the_outputs_that_were_saved(core: str, tmp_path: Path) -> None:
    policy, rewarded = dataclasses.replace(SMALL_POLICY, core=core), RewardConfig(intrinsic_coefficient=300.0)
    net = PolicyNet(RECALL_SPEC, policy)
    core_state = {name: tensor.numpy() for name, tensor in net.initial_state(3).items()}

    def make(epoch: int, seed: int) -> Learner:
        return Learner(RECALL_SPEC, policy, EVERYTHING, rewarded, run_epoch=epoch, seed=seed)

    def learn(seed):
        return learner.step(
            [random_rollout(seed=seed, policy_version=learner.policy_version, core_state=core_state)], REWARD
        )

    def played(snapshot: PolicySnapshot) -> np.ndarray:
        """Logits and values that a worker acts by over some steps."""
        inference = BatchedInference(net, RECALL_SPEC, 3, ActorsConfig(precision="fp32"))
        inference.load(snapshot)
        with inference.rollout(4):
            return np.stack(
                [np.column_stack(inference.step({"sign": sign})) for sign in random_rollout(seed=9).obs["sign"][:4]]
            )

    learner = make(0, 1)
    for seed in range(3):
        learn(seed)
    saved = played(learner.snapshot())
    save_checkpoint(tmp_path, 1, {"learner": learner.state_dict()}, keep=1)
    learn(4)  # what came after it leaves no trace
    state = load_latest(tmp_path)
    assert state is not None
    resumed = make(1, 2)
    resumed.load_state_dict(state["learner"])
    np.testing.assert_array_equal(played(resumed.snapshot()), saved)
    assert (played(learner.snapshot()) != saved).all()


@pytest.mark.parametrize(("resumed_in", "is_told"), [("fp32", False), ("bf16", True)])
def test_a_run_that_goes_on_in_other_numbers_says_so(
    caplog: pytest.LogCaptureFixture, resumed_in: str, is_told: bool
) -> None:
    make_learner(dataclasses.replace(FAST, precision=resumed_in), run_epoch=1).load_state_dict(
        make_learner().state_dict()
    )
    assert ("computed in fp32 so far and goes on in bf16" in caplog.text) == is_told


def test_a_learner_that_never_stepped_can_be_resumed() -> None:
    fresh, resumed = make_learner(), make_learner(run_epoch=1, seed=5)
    resumed.load_state_dict(fresh.state_dict())
    assert step_n(fresh, range(2)) == step_n(resumed, range(2))


def test_the_state_is_arrays_and_json_values_only() -> None:
    learner = make_learner()
    step_n(learner, range(1))

    def replace_arrays(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replace_arrays(inner) for key, inner in value.items()}
        return None if isinstance(value, np.ndarray) else value

    state = learner.state_dict()
    assert json.loads(json.dumps(replace_arrays(state))) == replace_arrays(state)


def test_versions_never_recur_because_a_state_of_the_same_epoch_is_refused() -> None:
    with pytest.raises(RuntimeError, match="an epoch of its own"):
        make_learner(run_epoch=2).load_state_dict(make_learner(run_epoch=2).state_dict())


def test_another_networks_state_is_refused() -> None:
    other = make_learner(policy=dataclasses.replace(SMALL_POLICY, core_size=16))
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_learner(run_epoch=1).load_state_dict(other.state_dict())


def test_a_step_reports_each_rollouts_lag_and_intrinsic_rewards() -> None:
    learner = make_learner()
    step_n(learner, range(4))
    rollouts = [
        random_rollout(num_envs=2, seed=1, policy_version=(0, 4)),
        random_rollout(num_envs=3, seed=2, policy_version=(0, 1)),
    ]
    result = learner.step(rollouts, REWARD)
    assert result.lags == [0, 3]
    for rollout, intrinsic in zip(rollouts, result.intrinsic, strict=True):
        np.testing.assert_allclose(
            intrinsic, (rollout.caption_ids == RIGHT) / rollout.caption_counts.astype(np.float64) ** 3, rtol=1e-6
        )
    assert result.metrics["intrinsic_reward_mean"] == pytest.approx(
        np.mean(np.concatenate([i.ravel() for i in result.intrinsic]))
    )
    assert result.metrics["intrinsic_unknown_fraction"] == 0.0


def test_a_step_reports_each_term_and_notes_what_it_paid_unless_the_update_was_skipped() -> None:
    terms = {MAIN_TERM: TermConfig(count_exponent=3.0), "wrong": TermConfig(coefficient=-0.5, count_exponent=1.0)}
    learner = Learner(RECALL_SPEC, SMALL_POLICY, FAST, INTRINSIC_ONLY, run_epoch=0, seed=1, terms=terms)
    against = RewardTable.build(KNOWN[1:], np.ones(1), (0, 7))
    reward = PublishedReward(tables={MAIN_TERM: REWARD.main, "wrong": against})
    rollout = random_rollout(num_envs=4, lost=(1,))
    result = learner.step([rollout], reward)
    assert sum(term["mean"] for term in result.terms.values()) == pytest.approx(result.metrics["intrinsic_reward_mean"])
    assert sum(term["share"] for term in result.terms.values()) == pytest.approx(1.0)
    assert result.terms["wrong"]["version"] == 7
    assert result.terms["wrong"]["unknown"] == pytest.approx(np.mean(rollout.caption_ids == RIGHT))
    costs = -0.5 * ((rollout.caption_ids == WRONG) / rollout.caption_counts)[:, rollout.kept]
    assert learner.paid_by_term["wrong"].costliest(5) == [(WRONG, pytest.approx(costs.sum()))]
    assert [item for item, _ in learner.paid.largest(5)[1]] == [RIGHT]
    before = learner.state_dict()["rewards"]
    bad = at_version(random_rollout(), learner.policy_version, final_values=np.full((5, 3), np.nan, np.float32))
    learner.step([bad], reward)
    assert_same(before, learner.state_dict()["rewards"])


def test_rollouts_are_left_as_they_were_even_where_they_cannot_be_written() -> None:
    rollout = random_rollout(read_only=True)
    make_learner().step([rollout], REWARD)
    np.testing.assert_array_equal(rollout.actions, random_rollout().actions)


def test_the_rollouts_end_is_worth_what_the_learners_own_net_says() -> None:
    learner = make_learner()
    rollout = random_rollout(1, 4, terminated=np.zeros((1, 4), bool), truncated=np.zeros((1, 4), bool))
    with torch.no_grad():
        core_state = {name: torch.from_numpy(array) for name, array in rollout.core_state.items()}
        output = learner.net({"sign": torch.from_numpy(rollout.obs["sign"])}, core_state)
    value, last_value = output.values.numpy()
    on_policy = dataclasses.replace(rollout, behaviour_logits=output.logits[:1].numpy(), behaviour_values=value[None])
    result = learner.step([on_policy], REWARD)
    assert result.metrics["value_loss"] == pytest.approx(
        np.mean((result.intrinsic[0][0] + 0.9 * last_value - value) ** 2), rel=1e-4
    )


def test_gradients_are_scaled_to_the_norm_limit() -> None:
    # Adam hides the gradient's scale, but its first moment shows it: (1 - beta1) x gradient.
    learner = make_learner(dataclasses.replace(FAST, max_grad_norm=0.01))
    metrics = step_n(learner, range(1))[0]
    assert metrics["grad_norm"] > 0.01
    moments = [entry["exp_avg"].ravel() for entry in learner.state_dict()["adam"].values()]
    assert np.linalg.norm(np.concatenate(moments)) == pytest.approx(0.1 * 0.01, rel=1e-4)


def test_weights_move_by_adam_with_the_configured_rate_decays_and_epsilon() -> None:
    config = dataclasses.replace(FAST, learning_rate=0.01, adam_beta1=0.7, adam_beta2=0.95, adam_epsilon=0.003)
    learner = make_learner(config)
    before = learner.snapshot().weights
    step_n(learner, range(1))
    after, moments = learner.snapshot().weights, learner.state_dict()["adam"]
    for name, entry in moments.items():
        gradient = entry["exp_avg"] / (1 - 0.7)
        np.testing.assert_allclose(entry["exp_avg_sq"], (1 - 0.95) * gradient**2, rtol=1e-3, atol=1e-12)
        # Bias-corrected, the first step's moments are the gradient and its square.
        step = 0.01 * gradient / (np.abs(gradient) + 0.003)
        np.testing.assert_allclose(after[name], before[name] - step, rtol=1e-4, atol=1e-6)


def test_on_the_behaviour_policys_own_rollout_every_ratio_is_one() -> None:
    learner, game = make_learner(), RecallGame(8)
    for number in range(3):  # whatever resets there were, and whatever state the rollout began in
        result = learner.step([game.collect(learner.snapshot(), 16, number)], REWARD)
        assert result.metrics["approx_kl"] < 1e-8
        assert result.metrics["clip_fraction"] == 0.0


def test_the_timings_of_the_stages_add_up_to_the_step() -> None:
    learner, rollout = make_learner(), random_rollout(32, 256)
    began = time.perf_counter()
    timings = learner.step([rollout], REWARD).timings
    duration = time.perf_counter() - began
    assert timings.keys() == {"relabel", "transfer", "train"}
    assert min(timings.values()) > 0
    assert 0.8 * duration < sum(timings.values()) <= duration
