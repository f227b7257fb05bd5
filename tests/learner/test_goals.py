"""The learner reads goals: it learns what to do for which, if and only if the policy sees them."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.environments.vector import ArraySpec, EnvironmentSpec
from actors.goals.entry import GOAL, GOAL_SPEC
from actors.policy import PolicyNet, PolicySnapshot, load_weights
from actors.rollout import Rollout
from configs.reward_schema import RewardConfig
from configs.schema import LearnerConfig, PolicyConfig
from learner.data_parallel import Part
from learner.update import Learner
from reward_models.goals.published import PublishedGoals
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.actors.goals.toy_goals import make_sheet
from tests.learner.toy_rollouts import random_rollout

NUM_STEPS, NUM_ENVS = 16, 32
SHEET = make_sheet(["do as the sign says", "do the opposite"])
SEEING = PolicyConfig(network="mlp", core="none", hidden_size=32, reads_goal=True)
BLIND = dataclasses.replace(SEEING, reads_goal=False)
SIGN = ArraySpec(shape=(), dtype=np.dtype(np.int64), num_values=2)


def published(version: int = 0) -> PublishedReward:
    goals = PublishedGoals(
        version=(0, version),
        texts=SHEET.texts,
        vectors=SHEET.vectors,
        weights=SHEET.sampling,
        sampling=SHEET.sampling,
        before=SHEET.before,
        suggested_ids=SHEET.suggested_ids,
        suggested=SHEET.suggested,
    )
    return dataclasses.replace(PublishedReward.of(RewardTable.empty()), goals=goals)


def spec_of(policy: PolicyConfig) -> EnvironmentSpec:
    entries = {"sign": SIGN, GOAL: GOAL_SPEC} if policy.reads_goal else {"sign": SIGN}
    return EnvironmentSpec(observations=entries, num_actions=2)


def make_learner(policy: PolicyConfig, **settings: object) -> Learner:
    config = LearnerConfig(learning_rate=0.003, precision="fp32", **settings)  # type: ignore[arg-type]
    reward = RewardConfig(intrinsic_coefficient=0.0)
    return Learner(spec_of(policy), policy, config, reward, run_epoch=0, seed=1)


@torch.no_grad()
def play(policy: PolicyConfig, weights: PolicySnapshot, number: int) -> Rollout:
    """Episodes of one step: a sign, a goal that says what to make of it, and a reward for the right action."""
    rng = np.random.default_rng(number)
    net = PolicyNet(spec_of(policy), policy)
    load_weights(net, weights.weights)
    net.set_goal_vectors(SHEET.vectors)
    signs = rng.integers(0, 2, (NUM_STEPS + 1, NUM_ENVS))
    goals = rng.integers(1, 3, (NUM_STEPS + 1, NUM_ENVS)).astype(np.int16)
    obs = {"sign": signs, **({GOAL: goals} if policy.reads_goal else {})}
    output = net({name: torch.from_numpy(array[:-1]) for name, array in obs.items()}, {})
    logits = output.logits.numpy()
    actions = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    right = actions == np.where(goals == 1, signs, 1 - signs)[:-1]
    shape = (NUM_STEPS, NUM_ENVS)
    return random_rollout(
        *shape,
        obs=obs,
        actions=actions,
        behaviour_logits=logits,
        behaviour_values=output.values.numpy(),
        final_values=np.full(shape, np.nan, np.float32),
        extrinsic_rewards=right.astype(np.float32),
        terminated=np.ones(shape, bool),
        truncated=np.zeros(shape, bool),
        core_state={},
        policy_version=weights.policy_version,
        sequence_number=number,
    )


@pytest.mark.parametrize(("policy", "learns"), [(SEEING, True), (BLIND, False)], ids=["seeing", "blind"])
def test_the_goal_decides_what_is_right_and_only_a_policy_that_reads_it_learns_that(
    policy: PolicyConfig, learns: bool
) -> None:
    """Without a core, too: the right action is that of neither the sign nor the goal alone."""
    learner = make_learner(policy, epochs=4)
    shares = []
    for number in range(16):
        rollout = play(policy, learner.snapshot(), number)
        shares.append(rollout.extrinsic_rewards.mean())
        learner.step([rollout], published(number))
    reached = float(np.mean(shares[-4:]))
    assert reached > 0.9 if learns else abs(reached - 0.5) < 0.1
    assert abs(shares[0] - 0.5) < 0.1
    if learns:
        obs = {"sign": torch.zeros(2, dtype=torch.int64), GOAL: torch.tensor([1, 2], dtype=torch.int16)}
        logits, _, _ = learner.net.step(obs, {})
        assert logits.argmax(-1).tolist() == [0, 1], "two goals, two actions"


def test_the_learner_reads_goals_by_the_vectors_that_were_published() -> None:
    """So the first update of a rollout has ratios of 1, whatever version of the goals the worker had."""
    learner = make_learner(SEEING, epochs=1, minibatches=1)
    result = learner.step([play(SEEING, learner.snapshot(), 0)], published())
    assert result.metrics["rho_clipped_fraction"] == pytest.approx(0.0, abs=1e-3)
    assert result.metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert learner.net.goal_vectors is not None
    assert torch.equal(learner.net.goal_vectors[1:3], torch.from_numpy(SHEET.vectors))
    assert not learner.net.goal_vectors[0].any()


def test_other_learners_get_the_vectors_with_their_part_where_they_are_new() -> None:
    """Else they would compute with other vectors: one per update would do, and most would be in vain."""
    learner, other = make_learner(SEEING, epochs=1), make_learner(SEEING, epochs=1)
    handed: list[Part] = []
    peers: Any = SimpleNamespace(hand_out=lambda parts, progress: handed.extend(parts), finish=lambda: None)
    learner._peers = peers
    reward = published()
    for number in range(2):
        learner.step([play(SEEING, learner.snapshot(), number)], reward)
    assert [part.goal_vectors is None for part in handed] == [False, True]
    for part in handed:
        other.take_part(part, 0.0)
    assert other.net.goal_vectors is not None
    assert torch.equal(other.net.goal_vectors, learner.net.goal_vectors)
    one, two = learner.snapshot().weights, other.snapshot().weights
    assert all(np.array_equal(weights, two[name]) for name, weights in one.items())
