"""The intrinsic reward as a sum of terms: against a slow reference, weights and caps, and what is kept of them."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from actors.rollout import EpisodeStatistics, Rollout
from configs.reward_schema import MAIN_TERM, RewardConfig, TermConfig
from learner.checkpoint import load_checkpoint, save_checkpoint
from learner.reward.mixer import MixedRewards, RewardMixer
from learner.reward.paid import paid_rewards
from reward_models.goals.masks import masks_of
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.learner.reward.slow_rewards import (
    FEATURES,
    ITEMS,
    PROGRESS_PROGRAM,
    REWARD_PROGRAM,
    SlowMixer,
    played_rollouts,
)
from tests.learner.toy_rollouts import random_rollout

MAIN = TermConfig(coefficient=0.4, count_exponent=3.0)
TERMS = {
    MAIN_TERM: dataclasses.replace(MAIN, trust="outcome", episode_cap=0.9),
    "fight": TermConfig(coefficient=-0.7, count_exponent=0.5, trust="outcome"),
    "depth": TermConfig(reads="state", pays="potential", gamma=0.9, anneal_env_steps=700, coefficient=0.5),
    "climb": TermConfig(reads="state", pays="improvement", episode_cap=0.8, coefficient=1.5),
    "tour": TermConfig(reads="state", pays="visits", bins=4, trust="outcome", anneal_env_steps=3000),
    "round": TermConfig(reads="state", pays="visits", visits_of="episode", bins=3, coefficient=0.3),
    "news": TermConfig(reads="change", count_exponent=1.0, coefficient=0.2, trust="earned"),
    "rise": TermConfig(reads="features", program=REWARD_PROGRAM, coefficient=0.3, trust="outcome", program_clip=0.9),
    "near": TermConfig(reads="features", program=PROGRESS_PROGRAM, pays="potential", gamma=0.9, coefficient=0.4),
    "far": TermConfig(reads="features", program=PROGRESS_PROGRAM, pays="improvement", episode_cap=0.8),
    "wide": TermConfig(reads="features", program=PROGRESS_PROGRAM, pays="visits", bins=5),
    "there": TermConfig(reads="features", program=PROGRESS_PROGRAM, coefficient=0.1, anneal_env_steps=900),
}
GOALS = {11: 0, 12: 0, 13: 63}
"""Of the main term: paid once per episode."""
FAILED, SOLVED = np.uint64(21), np.uint64(22)


def random_tables(number: int) -> tuple[PublishedReward, dict[str, dict[int, float]]]:
    """The tables of one version, each without some of the items, and the same as mappings."""
    rng = np.random.default_rng(number)
    tables, mappings = {}, {}
    for name in TERMS:
        ids = ITEMS[1:][rng.random(len(ITEMS) - 1) < 0.7]
        values = rng.uniform(-0.3, 1.2, len(ids)).astype(np.float32)
        goals = masks_of(np.array([GOALS.get(int(i), -1) for i in ids])) if name == MAIN_TERM else None
        tables[name] = RewardTable.build(ids, values, (1, number), goals)
        mappings[name] = {0: 0.0, **dict(zip(ids.tolist(), values.tolist(), strict=True))}
    if number == 0:  # a term that has not published yet knows the empty item alone
        del tables["climb"]
        mappings["climb"] = {0: 0.0}
    return PublishedReward(tables=tables), mappings


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_rewards_are_those_of_the_formulas_over_ends_losses_drops_new_tables_and_a_resume(
    share: float, tmp_path
) -> None:
    config = RewardConfig(extrinsic_coefficient=0.5, extrinsic_scale=2.0, extrinsic_clip=4.0, max_intrinsic_share=share)
    mixer, slow = RewardMixer(config, TERMS, features=FEATURES), SlowMixer(config, TERMS, GOALS)
    workers = [played_rollouts(f"{index}.0", 24, seed=index) for index in range(2)]
    assert any(rollout.lost for rollouts in workers for rollout in rollouts)
    least_trust = 1.0
    for number, (one, two) in enumerate(zip(*workers, strict=True)):
        reward, tables = random_tables(number // 3)
        if number == 13:
            mixer = resumed(mixer, config, tmp_path)
        if number >= 13:  # the next epoch's names of the same workers, whose episodes go on
            one, two = dataclasses.replace(one, worker_id="0.2"), dataclasses.replace(two, worker_id="1.2")
        if number % 5 == 2:
            mixer.pass_over(two, reward)
            slow.mix([two], tables, is_dropped=True)
        batch = [one] if number % 5 == 2 else [one, two]
        mixed, wanted = mixer.mix(batch, reward), slow.mix(batch, tables)
        kept = np.concatenate([rollout.kept for rollout in batch])
        mixer.note_paid(mixed, kept)
        for name, term in mixed.terms.items():
            np.testing.assert_allclose(term.rewards, wanted["terms"][name], rtol=2e-5, atol=1e-6, err_msg=name)
            assert term.unknown_fraction == pytest.approx(wanted["unknown"][name]), name
        np.testing.assert_allclose(mixed.total, wanted["total"], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(mixed.intrinsic, sum(wanted["terms"].values()), rtol=2e-5, atol=2e-6)
        assert mixed.total.dtype == mixed.intrinsic.dtype == np.float32
        least_trust = min(least_trust, *(term.weights.trust for term in mixed.terms.values()))
    assert least_trust < 0.9, "the weights were tested at other values than 1"
    assert (mixer.intrinsic_scale < 1) == (share < 1)
    for name in TERMS.keys() - {MAIN_TERM}:
        paid = {item: total for item, total in paid_rewards(mixer.paid[name].state_dict()).items() if abs(total) > 1e-9}
        earned = {item: total for item, total in slow.terms[name].earned.items() if abs(total) > 1e-9}
        assert paid == pytest.approx(earned, rel=1e-4, abs=1e-5), name


def resumed(mixer: RewardMixer, config: RewardConfig, directory: Any) -> RewardMixer:
    path = save_checkpoint(directory, 1, {"rewards": mixer.state_dict()}, keep=1)
    again = RewardMixer(config, TERMS, features=FEATURES)
    again.load_state_dict(load_checkpoint(path)["rewards"])
    return again


def test_the_main_term_alone_pays_its_formula_bit_for_bit() -> None:
    config = RewardConfig()
    table = RewardTable.build(ITEMS[1:5], np.array([1.0, 0.3, -0.7, 0.1]), (0, 1))
    mixer, paid = RewardMixer(config), {}
    for rollout in played_rollouts("0.0", 5, seed=3):
        mixed = mixer.mix([rollout], PublishedReward.of(table))
        values, known = table.look_up(rollout.caption_ids)
        extrinsic = config.extrinsic_coefficient * np.clip(config.extrinsic_scale * rollout.extrinsic_rewards, -10, 10)
        counts = rollout.caption_counts.astype(np.float32)
        intrinsic = config.intrinsic_coefficient * values / counts ** np.float32(config.count_exponent)
        np.testing.assert_array_equal(mixed.total, extrinsic + intrinsic)
        np.testing.assert_array_equal(mixed.intrinsic, intrinsic)
        assert mixed.intrinsic is mixed.terms[MAIN_TERM].rewards
        assert mixed.unknown_fraction == pytest.approx(1 - known.mean())
        mixer.note_paid(mixed, rollout.kept)
        for item, reward in zip(
            rollout.caption_ids[:, rollout.kept].flat, intrinsic[:, rollout.kept].flat, strict=True
        ):
            paid[int(item)] = paid.get(int(item), 0.0) + abs(float(reward))
    state = mixer.state_dict()
    assert paid_rewards(state["paid"]) == pytest.approx({item: total for item, total in paid.items() if total})
    assert state["ledger"] == {}
    assert state["cap"] == {"intrinsic": [0.0, 0.0], "extrinsic": [0.0, 0.0], "running": {}}


def test_the_state_of_a_version_without_terms_loads() -> None:
    rollouts = played_rollouts("0.0", 4, seed=5)
    reward, _ = random_tables(1)
    config = RewardConfig(max_intrinsic_share=0.3)
    first, resumed_one = RewardMixer(config), RewardMixer(config)
    for rollout in rollouts[:3]:
        first.note_paid(first.mix([rollout], reward), rollout.kept)
    state = first.state_dict()
    resumed_one.load_state_dict({key: state[key] for key in ("ledger", "cap", "paid")})
    np.testing.assert_array_equal(resumed_one.mix([rollouts[3]], reward).total, first.mix([rollouts[3]], reward).total)
    assert resumed_one.paid[MAIN_TERM].largest(3) == first.paid[MAIN_TERM].largest(3)


def test_what_terms_pay_adds_up_to_the_intrinsic_reward_and_their_shares_to_one() -> None:
    reward, _ = random_tables(2)
    rollouts = played_rollouts("0.0", 1, seed=8) + played_rollouts("1.0", 1, seed=9)
    mixed = RewardMixer(RewardConfig(), TERMS, features=FEATURES).mix(rollouts, reward)
    kept = np.array([True] * 7 + [False])
    metrics = mixed.term_metrics(kept)
    assert [*metrics] == [*TERMS]
    assert sum(term["share"] for term in metrics.values()) == pytest.approx(1.0)
    assert sum(term["mean"] for term in metrics.values()) == pytest.approx(float(mixed.intrinsic[:, kept].mean()))
    assert {term["version"] for term in metrics.values()} == {2}
    assert metrics["fight"]["coefficient"] == -0.7
    nothing = RewardMixer(RewardConfig(), TERMS, features=FEATURES).mix(
        rollouts, PublishedReward.of(RewardTable.empty())
    )
    assert nothing.term_metrics(kept)["depth"]["share"] == 0.0
    assert nothing.term_metrics(kept)["fight"]["version"] == 0


# -- trust
# ------------------------------------------------------------------------------------------------------------------


def one_episode(number: int, item: np.uint64, **changes: Any) -> Rollout:
    """An episode of one step that shows `item`, with a return of 1 where `success`."""
    is_success = changes.pop("success")
    statistics = EpisodeStatistics(
        episode_return=float(is_success), length=1, terminated=True, info=changes.pop("info", {})
    )
    fields: dict[str, Any] = {
        "caption_ids": np.full((1, 1), item),
        "caption_counts": np.ones((1, 1), np.int32),
        "extrinsic_rewards": np.full((1, 1), is_success, np.float32),
        "terminated": np.ones((1, 1), bool),
        "truncated": np.zeros((1, 1), bool),
        "episodes": (statistics,),
        "episode_ends": ((0, 0),),
        "sequence_number": number,
    }
    return random_rollout(1, 1, **fields | changes)


def trust_over(
    paid: dict[bool, np.ndarray],
    num_episodes: int,
    trust: str = "outcome",
    *,
    successes: tuple[int, ...] | None = None,
    **changes: Any,
) -> list[float]:
    """The trust before each of some episodes, of which these succeed (None: half), in a term that pays `paid` by
    success."""
    rng = np.random.default_rng(0)
    mixer = RewardMixer(RewardConfig(), {MAIN_TERM: MAIN, "judged": TermConfig(trust=trust)})
    ids, trusts = np.array([FAILED, SOLVED]), []
    for number in range(num_episodes):
        is_success = bool(rng.random() < 0.5) if successes is None else number in successes
        values = {success: rng.choice(amounts) for success, amounts in paid.items()}
        table = RewardTable.build(ids, np.array([values[False], values[True]]), (0, number))
        rollout = one_episode(number, ids[int(is_success)], success=is_success, **changes)
        mixed = mixer.mix([rollout], PublishedReward(tables={MAIN_TERM: RewardTable.empty(), "judged": table}))
        trusts.append(mixed.terms["judged"].weights.trust)
    return trusts


VARIED, NOTHING = np.linspace(0.5, 1.0, 11), np.zeros(1)


def test_a_term_that_pays_failures_loses_its_weight() -> None:
    trusts = trust_over({False: VARIED, True: NOTHING}, 200)
    assert trusts[:19] == [1.0] * 19, "until there are ten episodes of each"
    assert trusts[-1] < 0.2
    assert max(trusts[100:]) < 0.2


@pytest.mark.parametrize("paid", [{False: NOTHING, True: VARIED}, {False: np.ones(1), True: np.ones(1)}])
def test_a_term_that_pays_successes_or_all_alike_keeps_its_weight(paid: dict[bool, np.ndarray]) -> None:
    assert set(trust_over(paid, 200)) == {1.0}


def test_a_term_that_always_pays_failures_the_same_loses_all() -> None:
    assert trust_over({False: np.ones(1), True: NOTHING}, 60)[-1] == 0.0


def test_sums_that_differ_by_rounding_alone_are_equal() -> None:
    paid = {False: np.array([np.nextafter(np.float32(0.3), np.float32(1))]), True: np.array([np.float32(0.3)])}
    assert trust_over(paid, 60)[-1] > 0.99


def test_the_environments_own_success_decides_over_the_return() -> None:
    paid = {False: VARIED, True: NOTHING}
    assert set(trust_over(paid, 100, info={"success": 0.0})) == {1.0}, "there was no success"


def test_a_lost_episode_has_no_outcome() -> None:
    assert set(trust_over({False: VARIED, True: NOTHING}, 100, episodes=(), episode_ends=())) == {1.0}


def test_a_weight_is_earned_by_paying_successes_more_than_failures() -> None:
    trusts = trust_over({False: VARIED / 2, True: VARIED}, 200, "earned")
    first = next(number for number, trust in enumerate(trusts) if trust)
    assert 6 <= first < 20, "there are three episodes of each"
    assert trusts[-100:] == [1.0] * 100


@pytest.mark.parametrize("paid", [{False: VARIED, True: VARIED / 2}, {False: np.ones(1), True: np.ones(1)}])
def test_a_term_that_pays_failures_or_all_alike_earns_nothing(paid: dict[bool, np.ndarray]) -> None:
    assert set(trust_over(paid, 200, "earned")) == {0.0}


def test_where_hardly_any_episode_succeeds_the_task_needs_the_term() -> None:
    paid = {False: VARIED, True: NOTHING}
    assert trust_over(paid, 60, "earned", successes=()) == [0.0] * 30 + [1.0] * 30
    assert trust_over(paid, 60, "earned", successes=(9, 40)) == [0.0] * 60, "more than one in thirty succeeds"
    found_out = [0.0] * 30 + [1.0] * 21 + [0.0] * 9
    assert trust_over(paid, 60, "earned", successes=(40, 45, 50)) == found_out, "three successes speak against it"


# -- annealing and caps
# ------------------------------------------------------------------------------------------------------------------


def mix_one(mixer: RewardMixer, rollout: Rollout, value: float = 1.0) -> MixedRewards:
    table = RewardTable.build(np.array([FAILED]), np.array([value]), (0, 1))
    return mixer.mix([rollout], PublishedReward.of(table))


def test_a_term_is_annealed_by_the_steps_that_were_mixed_and_not_by_dropped_ones() -> None:
    config = RewardConfig(intrinsic_coefficient=2.0, anneal_env_steps=3)
    mixer = RewardMixer(config)
    rewards = []
    for number in range(4):
        rollout = one_episode(number, FAILED, success=False)
        if number == 1:
            mixer.pass_over(rollout, PublishedReward.of(RewardTable.empty()))
        else:
            rewards.append(float(mix_one(mixer, rollout).intrinsic[0, 0]))
    assert rewards == pytest.approx([2.0, 2 * math.exp(-1 / 3), 2 * math.exp(-2 / 3)])
    assert mix_one(mixer, one_episode(4, FAILED, success=False)).term_metrics(np.ones(1, bool))[MAIN_TERM][
        "coefficient"
    ] == pytest.approx(2 / math.e)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_episode_is_paid_up_to_the_cap_the_last_reward_is_cut_to_fit_and_the_next_episode_is_free(sign: int) -> None:
    ends = np.array([0, 0, 0, 0, 1, 0], bool)[:, None]
    rollout = random_rollout(
        6,
        1,
        caption_ids=np.full((6, 1), FAILED),
        caption_counts=np.ones((6, 1), np.int32),
        terminated=ends,
        truncated=np.zeros_like(ends),
    )
    config = RewardConfig(extrinsic_coefficient=0.0, intrinsic_coefficient=1.0, episode_cap=2.5)
    mixer = RewardMixer(config)
    assert mix_one(mixer, rollout, sign).total[:, 0].tolist() == [sign, sign, sign * 0.5, 0, 0, sign]
    again = dataclasses.replace(rollout, sequence_number=1)
    assert mix_one(mixer, again, sign).total[:, 0].tolist() == [sign, sign * 0.5, 0, 0, 0, sign]
