"""Several learners, in processes of their own, against one with the whole batch."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from actors.rollout import Rollout
from configs.schema import LearnerConfig
from learner.data_parallel import ExchangeFailed, Meeting, Share, divide, meet, open_meeting
from learner.update import Learner, StepResult
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.learner.other_learners import HOST, OtherLearners, make_learner
from tests.learner.toy_rollouts import RIGHT, WRONG, random_rollout

REWARD = PublishedReward.of(RewardTable.build(np.array([RIGHT, WRONG], np.uint64), np.array([1.0, -0.5]), (0, 1)))
PLAIN = LearnerConfig(rollouts_per_batch=6, learning_rate=1e-3, precision="fp32", device="cpu", max_grad_norm=0.05)
ONE_STEP = dataclasses.replace(PLAIN, epochs=1, minibatches=1, normalize_returns=False, normalize_advantages=False)
POISONED, UPDATES = 1, 3
"""Number of the update whose batch has a reward that is not finite, and of updates."""


@pytest.fixture(scope="module")
def others() -> Iterator[OtherLearners]:
    made = OtherLearners(1)
    yield made
    made.end()


def batch(number: int, learner: Learner) -> list[Rollout]:
    """Six rollouts of 1 to 4 environments, some lost, and one without any that is left."""
    sizes = np.random.default_rng(number).integers(1, 5, 6)
    rollouts = [
        random_rollout(num_envs=int(size), seed=10 * number + index, policy_version=learner.policy_version)
        for index, size in enumerate(sizes)
    ]
    rollouts[1] = random_rollout(num_envs=3, seed=10 * number + 7, policy_version=learner.policy_version, lost=(1,))
    rollouts.insert(4, dataclasses.replace(rollouts[0], lost=tuple(range(int(sizes[0])))))
    if number == POISONED:
        rollouts[-1].extrinsic_rewards[2, 0] = math.nan
    return rollouts


def train(learner: Learner) -> list[StepResult]:
    return [learner.step(batch(number, learner), REWARD, number / UPDATES) for number in range(UPDATES)]


def assert_close(left: Any, right: Any, path: str = "", **tolerance: float) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_close(left[key], right[key], f"{path}/{key}", **tolerance)
    elif isinstance(left, str | list):
        assert left == right, path
    else:
        np.testing.assert_allclose(left, right, err_msg=path, **tolerance)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(PLAIN, id="as by default"),
        pytest.param(ONE_STEP, id="one gradient step"),
        pytest.param(dataclasses.replace(PLAIN, minibatches=7), id="shares that are empty"),
    ],
)
def test_several_learners_learn_what_one_learns_from_the_whole_batch(
    others: OtherLearners, config: LearnerConfig
) -> None:
    one, first = make_learner(config), make_learner(config)
    expected = train(one)
    with others.joined_by(first, config):
        results = train(first)
        states = others.states()
    for state in states:  # the others have the same weights, bit for bit; rewards are the first one's alone
        assert_close({**first.state_dict(), "rewards": {}}, {**state, "rewards": {}}, rtol=0, atol=0)
    assert_close(one.state_dict(), first.state_dict(), rtol=1e-4, atol=1e-5)
    assert first.policy_version == one.policy_version
    assert first.metrics()["updates_skipped_nonfinite"] >= 1, "the poisoned batch, by all"
    for result, wanted in zip(results, expected, strict=True):
        assert_close(wanted.metrics, result.metrics, rtol=2e-3, atol=2e-5)
        assert result.skipped_fraction == wanted.skipped_fraction
        assert result.lags == wanted.lags


def test_learners_that_continue_from_a_state_stay_equal(others: OtherLearners) -> None:
    one, first = make_learner(PLAIN), make_learner(PLAIN)
    train(one)
    first.continue_from(one.state_dict())
    with others.joined_by(first, PLAIN):
        first.step(batch(9, first), REWARD)
    one.step(batch(9, one), REWARD)
    assert_close(one.state_dict(), first.state_dict(), rtol=1e-4, atol=1e-5)


def test_the_death_of_another_learner_ends_the_exchange(others: OtherLearners) -> None:
    first = make_learner(PLAIN)
    others.hand_out = lambda parts, progress: others.processes[0].kill()  # type: ignore[method-assign]
    with pytest.raises(ExchangeFailed, match="could not exchange"), others.joined_by(first, PLAIN):
        first.step(batch(0, first), REWARD)


def test_parts_have_equally_many_rollouts_and_their_rewards_without_lost_environments() -> None:
    rollouts = [random_rollout(num_envs=3, lost=(0,)), random_rollout(num_envs=4), random_rollout(num_envs=1)]
    rewards = np.arange(5 * 7).reshape(5, 7)
    two = divide(rollouts, rewards, 2)
    assert [list(map(id, part.rollouts)) for part in two] == [list(map(id, rollouts[:2])), [id(rollouts[2])]]
    assert [part.share for part in two] == [Share(0, 6, 7), Share(6, 1, 7)]
    np.testing.assert_array_equal(np.concatenate([part.rewards for part in two], axis=1), rewards)
    (whole,) = divide(rollouts, rewards, 1)
    assert whole.share.is_whole


def test_a_share_finds_its_environments_in_a_minibatch() -> None:
    assert Share(2, 3, 9).among(torch.tensor([8, 4, 0, 2])).tolist() == [1, 3]


def test_a_meeting_listens_on_its_own_address_only_and_one_that_nobody_holds_is_given_up() -> None:
    meeting, store = open_meeting(HOST, 2, backend="gloo", device_type="cpu", timeout_s=1.0)
    with pytest.raises(ExchangeFailed, match=r"learner 1 could not meet the others at 127\.0\.0\.1:"):
        meet(meeting, 0, torch.device("cpu"), HOST, store)
    del store
    with pytest.raises(ExchangeFailed, match="learner 2 could not meet"):
        meet(meeting, 1, torch.device("cpu"), HOST)


def test_a_learner_on_another_kind_of_device_is_refused() -> None:
    meeting = Meeting(host=HOST, port=1, size=2, backend="nccl", device_type="cuda", timeout_s=1.0)
    with pytest.raises(ValueError, match="learner 2 computes on cpu, the first one on cuda"):
        meet(meeting, 1, torch.device("cpu"), HOST)
