"""Rewards that depend on the running episode: goals paid once, and the cap on intrinsic reward's share."""

import dataclasses
import math

import numpy as np
import pytest

from actors.rollout import Rollout
from configs.reward_schema import RewardConfig
from configs.schema import LearnerConfig
from learner.checkpoint import load_checkpoint, save_checkpoint
from learner.reward.episode_rewards import RunningEpisodes
from learner.reward.mixer import RewardMixer, mix_rewards
from learner.stream import RolloutStream
from reward_models.goals.masks import masks_of
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.learner.toy_rollouts import random_rollout

CONFIG = RewardConfig(extrinsic_coefficient=0.5, intrinsic_coefficient=2.0, count_exponent=1.0)
IDS = np.array([11, 12, 13, 14], np.uint64)
TABLE = RewardTable.build(IDS, np.array([1.0, 0.5, 0.25, 0.75]), (0, 1), goals=masks_of(np.array([0, 0, 63, -1])))
"""Two captions reach goal 0, one goal 63, one none; 15 is unknown."""
REWARD = PublishedReward.of(TABLE)


def rollouts_of(worker: str, num: int, seed: int, num_steps: int = 6, num_envs: int = 3) -> list[Rollout]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(num):
        ids = rng.choice(np.array([0, 11, 12, 13, 14, 15], np.uint64), (num_steps, num_envs))
        extrinsic = np.where(rng.random((num_steps, num_envs)) < 0.1, 3.0, -0.01).astype(np.float32)
        made.append(
            random_rollout(
                num_steps,
                num_envs,
                seed=100 * seed + number,
                caption_ids=ids,
                worker_id=worker,
                sequence_number=number,
                extrinsic_rewards=extrinsic,
            )
        )
    return made


def slow_totals(rollouts: list[Rollout]) -> list[list[list[float]]]:
    """Of one worker's rollouts in order: a goal is paid at its first caption in an episode."""
    rewards, goals = {11: 1.0, 12: 0.5, 13: 0.25, 14: 0.75}, {11: 0, 12: 0, 13: 63}
    paid: list[set[int]] = [set() for _ in range(rollouts[0].actions.shape[1])]
    totals = []
    for rollout in rollouts:
        total = np.zeros(rollout.actions.shape)
        for t in range(total.shape[0]):
            for b in range(total.shape[1]):
                number = int(rollout.caption_ids[t, b])
                goal = goals.get(number)
                is_due = goal is None or goal not in paid[b]
                if goal is not None:
                    paid[b].add(goal)
                total[t, b] = 0.5 * rollout.extrinsic_rewards[t, b]
                total[t, b] += 2.0 * is_due * rewards.get(number, 0.0) / rollout.caption_counts[t, b]
                if rollout.terminated[t, b] or rollout.truncated[t, b]:
                    paid[b] = set()
        totals.append(total.tolist())
    return totals


def test_each_goal_is_paid_once_per_episode_over_rollouts_and_workers() -> None:
    one, two = rollouts_of("0.1", 8, seed=1), rollouts_of("1.1", 8, seed=2)
    mixer = RewardMixer(CONFIG)
    for a, b, total_a, total_b in zip(one, two, slow_totals(one), slow_totals(two), strict=True):
        mixed = mixer.mix([a, b], REWARD)
        np.testing.assert_allclose(mixed.total, np.concatenate([total_a, total_b], axis=1), rtol=1e-6)
        np.testing.assert_allclose(mixed.total, mixed.extrinsic + mixed.intrinsic, rtol=1e-6)


def test_rollouts_that_are_dropped_move_the_ledger_on() -> None:
    rollouts = rollouts_of("0.1", 8, seed=3)
    mixer = RewardMixer(CONFIG)
    for number, (rollout, total) in enumerate(zip(rollouts, slow_totals(rollouts), strict=True)):
        if number % 3 == 1:
            mixer.pass_over(rollout, REWARD)
        else:
            np.testing.assert_allclose(mixer.mix([rollout], REWARD).total, total, rtol=1e-6)


def test_the_stream_tells_of_every_rollout_that_it_drops_for_its_age_and_of_no_other() -> None:
    told: list[int] = []
    stream = RolloutStream(
        LearnerConfig(max_policy_lag=2, rollouts_per_batch=2),
        on_stale=lambda rollout: told.append(rollout.sequence_number),
    )

    def put(number: int, made_at: int, now: int, epoch: int = 1) -> list[int] | None:
        rollout = random_rollout(policy_version=(epoch, made_at), sequence_number=number)
        batch = stream.put(rollout, (1, now))
        return None if batch is None else [taken.sequence_number for taken in batch]

    assert put(0, 0, 0) is None
    assert put(0, 0, 0) is None  # a second copy is no rollout of the episode
    assert put(1, 5, 5) is None
    assert told == [0]
    assert put(2, 1, 5) is None
    assert told == [0, 2]
    assert put(3, 7, 7, epoch=0) is None
    assert told == [0, 2], "another epoch's episodes are not these"
    assert put(4, 6, 6) == [1, 4]
    assert stream.metrics()["rollouts_dropped_stale"] == 3


def test_what_waits_at_the_end_of_an_epoch_moves_the_ledger_on() -> None:
    told: list[int] = []
    stream = RolloutStream(
        LearnerConfig(rollouts_per_batch=3), on_stale=lambda rollout: told.append(rollout.sequence_number)
    )
    for number in range(2):
        assert stream.put(random_rollout(sequence_number=number, policy_version=(1, 0)), (1, 0)) is None
    stream.drop_waiting()
    stream.drop_waiting()
    assert told == [0, 1]
    assert stream.metrics()["rollouts_dropped_stale"] == 0
    assert stream.put(random_rollout(sequence_number=2, policy_version=(1, 0)), (1, 0)) is None, (
        "what was dropped is in no batch"
    )


def test_what_is_known_of_an_episode_outlives_rollouts_and_ends_with_it_and_with_its_worker() -> None:
    known, ends = RunningEpisodes(np.float64, 2), np.array([[False, True], [False, False]])

    def after(worker: str, number: int) -> list[list[float]]:
        rollout = random_rollout(
            2, 2, terminated=ends, truncated=np.zeros_like(ends), worker_id=worker, sequence_number=number
        )
        for t, sums, done in known.walk(rollout):
            assert done.tolist() == ends[t].tolist()
            sums += 1.0
        return known.state_dict()[worker.partition(".")[0]].tolist()

    assert after("0.0", 0) == [[2.0, 1.0]] * 2
    assert after("1.0", 0) == [[2.0, 1.0]] * 2, "each worker has its own"
    assert after("0.1", 1) == [[4.0, 1.0]] * 2, "after a resume the episodes go on"
    assert after("0.2", 0) == [[2.0, 1.0]] * 2, "a replaced worker's episodes are new"


def test_a_worker_that_begins_anew_has_been_paid_for_nothing() -> None:
    first = random_rollout(
        1,
        1,
        caption_ids=np.array([[11]], np.uint64),
        terminated=np.zeros((1, 1), bool),
        truncated=np.zeros((1, 1), bool),
    )
    mixer = RewardMixer(CONFIG)
    assert mixer.mix([first], REWARD).intrinsic[0, 0] > 0
    assert mixer.mix([dataclasses.replace(first, sequence_number=1)], REWARD).intrinsic[0, 0] == 0
    assert mixer.mix([dataclasses.replace(first, worker_id="0.2")], REWARD).intrinsic[0, 0] > 0


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_ledger_and_cap_survive_a_checkpoint_exactly(share: float, tmp_path) -> None:
    config = dataclasses.replace(CONFIG, max_intrinsic_share=share)
    rollouts = rollouts_of("0.1", 10, seed=4)
    whole, first, resumed = RewardMixer(config), RewardMixer(config), RewardMixer(config)
    for rollout in rollouts[:5]:
        whole.mix([rollout], REWARD)
        first.mix([rollout], REWARD)
    path = save_checkpoint(tmp_path, 1, {"rewards": first.state_dict()}, keep=1)
    resumed.load_state_dict(load_checkpoint(path)["rewards"])
    for rollout in rollouts[5:]:
        again = dataclasses.replace(
            rollout, worker_id="0.2"
        )  # the next epoch's name of the same worker, whose episodes go on
        np.testing.assert_array_equal(resumed.mix([again], REWARD).total, whole.mix([rollout], REWARD).total)
        assert resumed.intrinsic_scale == whole.intrinsic_scale


def test_a_table_without_goals_pays_every_time() -> None:
    plain = RewardTable.build(IDS, TABLE.look_up(IDS)[0], (0, 1))
    (rollout,) = rollouts_of("0.1", 1, seed=5)
    mixed = RewardMixer(CONFIG).mix([rollout], PublishedReward.of(plain))
    wanted = mix_rewards(
        extrinsic_rewards=rollout.extrinsic_rewards,
        caption_ids=rollout.caption_ids,
        caption_counts=rollout.caption_counts,
        table=plain,
        config=CONFIG,
    )
    np.testing.assert_array_equal(mixed.total, wanted.total)


# -- the cap
# ------------------------------------------------------------------------------------------------------------------


def slow_scales(rollouts: list[Rollout], share: float, table: RewardTable) -> list[float]:
    """The scale before each rollout of one worker, from lists of finished episodes' sums."""
    num_envs = rollouts[0].actions.shape[1]
    sums = [[0.0, 0.0] for _ in range(num_envs)]
    intrinsic: list[float] = []
    extrinsic: list[float] = []
    scales = []

    def mean(values: list[float]) -> float:
        weights = [0.99 ** (len(values) - 1 - i) for i in range(len(values))]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    for rollout in rollouts:
        known = bool(extrinsic) and bool(sum(intrinsic))
        scales.append(min(1.0, share / (1 - share) * mean(extrinsic) / mean(intrinsic)) if known else 1.0)
        rewards, _ = table.look_up(rollout.caption_ids)
        for t in range(rollout.actions.shape[0]):
            for b in range(num_envs):
                sums[b][0] += abs(2.0 * rewards[t, b] / rollout.caption_counts[t, b])
                sums[b][1] += max(0.0, 0.5 * rollout.extrinsic_rewards[t, b])
                if rollout.terminated[t, b] or rollout.truncated[t, b]:
                    intrinsic.append(sums[b][0])
                    if sums[b][1]:
                        extrinsic.append(sums[b][1])
                    sums[b] = [0.0, 0.0]
    return scales


def test_the_cap_is_its_formula_and_scales_intrinsic_reward_alone() -> None:
    table = RewardTable.build(IDS, np.array([1.0, 0.5, 0.25, -0.75]), (0, 1))
    rollouts = rollouts_of("0.1", 40, seed=6)
    capped, free = RewardMixer(dataclasses.replace(CONFIG, max_intrinsic_share=0.3)), RewardMixer(CONFIG)
    scales = slow_scales(rollouts, 0.3, table)
    assert min(scales) < 0.7
    for rollout, scale in zip(rollouts, scales, strict=True):
        assert capped.intrinsic_scale == pytest.approx(scale, rel=1e-5)
        mixed, uncapped = (
            capped.mix([rollout], PublishedReward.of(table)),
            free.mix([rollout], PublishedReward.of(table)),
        )
        np.testing.assert_allclose(mixed.intrinsic, scale * uncapped.intrinsic, rtol=1e-5)
        np.testing.assert_array_equal(mixed.extrinsic, uncapped.extrinsic)
        np.testing.assert_allclose(mixed.total, mixed.extrinsic + mixed.intrinsic, rtol=1e-6)


@pytest.mark.parametrize("every_step", [0.0, -0.01])
def test_before_the_first_success_exploration_is_not_capped(every_step: float) -> None:
    """A penalty for every step is none."""
    rollouts = [
        dataclasses.replace(r, extrinsic_rewards=np.full_like(r.extrinsic_rewards, every_step))
        for r in rollouts_of("0.1", 10, seed=7)
    ]
    mixer = RewardMixer(dataclasses.replace(CONFIG, max_intrinsic_share=0.01))
    for rollout in rollouts:
        mixer.mix([rollout], REWARD)
        assert mixer.intrinsic_scale == 1.0


def test_rare_success_sets_the_scale_by_what_a_success_is_worth_not_by_how_rare_it_is() -> None:
    ends = np.ones((1, 100), bool)
    mixer = RewardMixer(RewardConfig(extrinsic_coefficient=1.0, intrinsic_coefficient=1.0, max_intrinsic_share=0.5))
    base = random_rollout(
        1,
        100,
        caption_ids=np.full((1, 100), 11, np.uint64),
        caption_counts=np.ones((1, 100), np.int32),
        terminated=ends,
        truncated=~ends,
    )
    for number in range(20):
        extrinsic = np.zeros((1, 100), np.float32)
        extrinsic[0, 0] = 0.5 if number == 3 else 0.0
        mixer.mix(
            [dataclasses.replace(base, extrinsic_rewards=extrinsic, sequence_number=number)],
            PublishedReward.of(RewardTable.build(IDS, np.ones(4), (0, 1))),
        )
    assert mixer.intrinsic_scale == pytest.approx(0.5), (
        "half of the total of an episode that succeeds, though 1 in 2,000 does"
    )
    assert math.isfinite(mixer.intrinsic_scale)
