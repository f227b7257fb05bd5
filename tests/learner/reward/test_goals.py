"""What the payment `goals` pays: against a slow reference, rule by rule, and what `neutralise` leaves optimal."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from actors.rollout import EpisodeStatistics, Rollout
from configs.goal_schema import GOAL_TERM, MAX_GOALS, GoalsConfig
from configs.reward_schema import MAIN_TERM, RewardConfig, TermConfig
from learner.checkpoint import load_checkpoint, save_checkpoint
from learner.reward.goals import MAX_TAKEN_BACK, TAKEN_BACK, Goals
from learner.reward.mixer import MixedRewards, RewardMixer
from learner.reward.paid import paid_rewards
from reward_models.goals.masks import masks_of
from reward_models.goals.published import PublishedGoals
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.learner.reward.slow_rewards import ITEMS, SlowGoals, SlowMixer, played_rollouts
from tests.learner.toy_rollouts import random_rollout

GOALS = (0, 1, 63, 64, 130, 255)
PLAN = {1: 0, 255: 1, 64: 63}
"""255 after 1 after 0, and 64 after 63."""
NOTHING = np.zeros((0, 4), np.uint64)


def published(weights: dict[int, float], plan: dict[int, int] | None = None, **changes: Any) -> PublishedGoals:
    """Goals by number with their weights, each after that of `plan`, and suggested nowhere."""
    fields = {"weights": np.zeros(MAX_GOALS, np.float32), "before": np.full(MAX_GOALS, -1, np.int16)}
    fields["weights"][[*weights]] = [*weights.values()]
    for goal, earlier in (plan or {}).items():
        fields["before"][goal] = earlier
    fields |= {"sampling": np.ones(MAX_GOALS, np.float32), "vectors": np.zeros((0, 384), np.float32)}
    fields |= {"suggested_ids": np.zeros(0, np.uint64), "suggested": NOTHING}
    return PublishedGoals(version=(0, 1), texts=(), **fields | changes)


def mask(*goals: int) -> np.ndarray:
    """[4] u64"""
    return np.bitwise_or.reduce(masks_of(np.array([-1, *goals])), axis=0)


# -- against the reference
# ------------------------------------------------------------------------------------------------------------------


def random_goals(number: int, *, is_plan: bool) -> tuple[PublishedReward, dict[str, dict[int, float]], SlowGoals]:
    """What is published at one time, each item and state known or not, and the same as mappings."""
    rng = np.random.default_rng(number)
    ids = ITEMS[1:][rng.random(len(ITEMS) - 1) < 0.8]
    achieved = {int(i): [g for g in GOALS if rng.random() < 0.3] for i in ids}
    suggested = {int(i): [g for g in GOALS if rng.random() < 0.6] for i in ITEMS}
    del suggested[int(rng.choice(ITEMS))]
    weights = {g: float(np.float32(rng.choice([0.0, 0.5, 1.0, rng.random()]))) for g in GOALS}
    masks = np.array([mask(*achieved[int(i)]) for i in ids])
    values = rng.random(len(ids))
    tables = {MAIN_TERM: RewardTable.build(ids, values, (1, number))}
    tables[GOAL_TERM] = RewardTable.build(ids, values, (1, number), masks)
    states = np.array(sorted(suggested), np.uint64)
    goals = published(
        weights,
        plan=PLAN if is_plan else {},
        suggested_ids=states,
        suggested=np.array([mask(*suggested[int(state)]) for state in states]),
    )
    mapping = {0: 0.0, **{int(i): float(v) for i, v in zip(ids, values.astype(np.float32), strict=True)}}
    slow = SlowGoals(
        achieved=achieved, weights=goals.weights.tolist(), before=goals.before.tolist(), suggested=suggested
    )
    reward = PublishedReward(tables=tables, goals=goals)
    if number == 0:  # the goals' own pipeline has published nothing yet
        del tables[GOAL_TERM]
        return dataclasses.replace(reward, goals=None), {MAIN_TERM: mapping, GOAL_TERM: {0: 0.0}}, slow
    return reward, {MAIN_TERM: mapping, GOAL_TERM: mapping}, slow


def with_current_goals(rollout: Rollout, seed: int) -> Rollout:
    """Each step pursues one of the goals, or none."""
    shape = len(rollout.actions) + 1, rollout.actions.shape[1]
    goals = np.random.default_rng(seed).choice([0, *(g + 1 for g in GOALS)], shape).astype(np.int16)
    return dataclasses.replace(rollout, obs=rollout.obs | {"goal": goals})


@pytest.mark.parametrize("is_plan", [False, True])
@pytest.mark.parametrize(
    ("settings", "term"),
    [
        (GoalsConfig(scope="any"), TermConfig(coefficient=0.7)),
        (GoalsConfig(scope="suggested", once=False), TermConfig(reads="change", trust="outcome")),
        (GoalsConfig(scope="current"), TermConfig(coefficient=2.0, episode_cap=2.5)),
        (GoalsConfig(scope="any", neutralise=True), TermConfig(coefficient=0.5)),
        (
            GoalsConfig(scope="suggested", neutralise=True, once=False),
            TermConfig(coefficient=0.3, anneal_env_steps=800),
        ),
    ],
)
def test_rewards_are_those_of_the_formula_over_ends_losses_drops_new_tables_and_a_resume(
    settings: GoalsConfig, term: TermConfig, is_plan: bool, tmp_path
) -> None:
    term = dataclasses.replace(term, pays=GOAL_TERM, gamma=0.8, count_exponent=0.0)
    terms = {MAIN_TERM: TermConfig(coefficient=0.1, count_exponent=1.0), GOAL_TERM: term}
    config = RewardConfig(max_intrinsic_share=0.4)
    mixer, slow = RewardMixer(config, terms, settings), SlowMixer(config, terms, {}, settings)
    workers = [played_rollouts(f"{index}.0", 15, seed=index) for index in range(2)]
    for number, pair in enumerate(zip(*workers, strict=True)):
        one, two = (with_current_goals(rollout, 2 * number + index) for index, rollout in enumerate(pair))
        reward, tables, book = random_goals(number // 3, is_plan=is_plan)
        slow.terms[GOAL_TERM].book = book
        if number == 11:
            path = save_checkpoint(tmp_path, 1, {"rewards": mixer.state_dict()}, keep=1)
            mixer = RewardMixer(config, terms, settings)
            mixer.load_state_dict(load_checkpoint(path)["rewards"])
        if number >= 11:  # the next epoch's names of the same workers, whose episodes go on
            one, two = dataclasses.replace(one, worker_id="0.2"), dataclasses.replace(two, worker_id="1.2")
        if number % 5 == 2:
            mixer.pass_over(one, reward)
            slow.mix([one], tables, is_dropped=True)
        batch = [two] if number % 5 == 2 else [one, two]
        mixed, wanted = mixer.mix(batch, reward), slow.mix(batch, tables)
        mixer.note_paid(mixed, np.concatenate([rollout.kept for rollout in batch]))
        got = mixed.terms[GOAL_TERM]
        np.testing.assert_allclose(got.rewards, wanted["terms"][GOAL_TERM], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(mixed.total, wanted["total"], rtol=2e-5, atol=2e-6)
        assert got.unknown_fraction == pytest.approx(wanted["unknown"][GOAL_TERM])
    by_goal = {goal: total for goal, total in slow.terms[GOAL_TERM].by_goal.items() if total}
    assert by_goal.keys() >= {0, 63, 130}
    assert (TAKEN_BACK in by_goal) == settings.neutralise
    assert paid_rewards(mixer.paid_goals.state_dict()) == pytest.approx(by_goal, rel=1e-4, abs=1e-5)


# -- rule by rule
# ------------------------------------------------------------------------------------------------------------------

KEY, DOOR, BOTH, NEITHER, UNKNOWN = 31, 32, 33, 34, 39
TABLE = RewardTable.build(
    np.array([KEY, DOOR, BOTH, NEITHER], np.uint64),
    np.ones(4),
    (0, 1),
    np.array([mask(0), mask(200), mask(0, 200), mask()]),
)
PRICES = {0: 1.0, 200: 0.25}
HALL, CELL = 41, 42


def episode(items: list[int], *, success: bool | None = None, number: int = 0, **changes: Any) -> Rollout:
    """One environment's steps; the episode ends with the last one, where `success` is told."""
    shape = len(items), 1
    ends = np.zeros(shape, bool)
    ends[-1] = success is not None
    info = {"success": float(bool(success))}
    statistics = EpisodeStatistics(episode_return=0.0, length=1, terminated=True, info=info)
    fields: dict[str, Any] = {
        "caption_ids": np.array(items, np.uint64)[:, None],
        "terminated": ends,
        "truncated": np.zeros(shape, bool),
        "episodes": (statistics,) if ends.any() else (),
        "episode_ends": ((shape[0] - 1, 0),) if ends.any() else (),
        "sequence_number": number,
    }
    return random_rollout(*shape, **fields | changes)


def make(coefficient: float = 2.0, gamma: float = 0.5, **settings: Any) -> Goals:
    return Goals(TermConfig(pays=GOAL_TERM, coefficient=coefficient, gamma=gamma), GoalsConfig(**settings))


def paid(payment: Goals, rollout: Rollout, **changes: Any) -> list[float]:
    rewards = payment.pay(rollout, TABLE, published(PRICES, **changes)).rewards
    assert rewards.dtype == np.float32
    return rewards[:, 0].tolist()


def test_a_goal_is_paid_once_per_episode_or_every_time() -> None:
    items = [KEY, NEITHER, KEY, BOTH, UNKNOWN, DOOR]
    assert paid(make(), episode(items)) == [2.0, 0, 0, 0.5, 0, 0]
    assert paid(make(once=False), episode(items)) == [2.0, 0, 2.0, 2.5, 0, 0.5]
    payment = make()
    assert paid(payment, episode([KEY, NEITHER], success=False)) == [2.0, 0]
    assert paid(payment, episode([KEY, KEY], number=1)) == [2.0, 0], "the next episode's"
    assert paid(payment, episode([KEY, DOOR], number=2)) == [0, 0.5], "the episode goes on in the next rollout"
    assert paid(payment, episode([KEY], worker_id="0.1")) == [2.0], "a replaced worker's"


def test_a_plan_is_paid_in_its_turn_one_goal_after_another() -> None:
    plan = {200: 0}
    assert paid(make(), episode([DOOR, KEY, DOOR]), plan=plan) == [0, 2.0, 0.5]
    assert paid(make(), episode([BOTH, NEITHER, BOTH, DOOR]), plan=plan) == [2.0, 0, 0.5, 0]
    assert paid(make(), episode([KEY, DOOR]), plan={200: 0, 0: 200}) == [0, 0], "goals that wait for each other"
    payment = make()
    assert paid(payment, episode([KEY], success=True), plan=plan) == [2.0]
    assert paid(payment, episode([DOOR], number=1), plan=plan) == [0], "the key was another episode's"


def test_a_plan_goes_on_after_goals_that_the_scope_does_not_pay() -> None:
    goals = np.array([0, 201, 0], np.int16)[:, None]
    rollout = episode([KEY, DOOR], obs={"goal": goals})
    assert paid(make(scope="current"), rollout, plan={200: 0}) == [0, 0.5]


def test_what_is_suggested_in_the_state_before_the_action_is_paid_and_nothing_in_an_unknown_state() -> None:
    states = np.array([HALL, CELL, UNKNOWN, HALL], np.uint64)[:, None]
    rollout = episode([BOTH, BOTH, BOTH, BOTH], signals={"state_before": states})
    suggested = {"suggested_ids": np.array([HALL, CELL], np.uint64), "suggested": np.array([mask(200), mask(0, 1)])}
    assert paid(make(scope="suggested", once=False), rollout, **suggested) == [0.5, 2.0, 0, 0.5]
    assert paid(make(scope="suggested"), rollout) == [0, 0, 0, 0], "before the first suggestion"


def test_the_goal_that_the_policy_was_given_is_paid() -> None:
    goals = np.array([1, 0, 201, 2, 1], np.int16)[:, None]  # the last one is the next rollout's
    rollout = episode([BOTH, BOTH, BOTH, BOTH], obs={"goal": goals})
    assert paid(make(scope="current"), rollout) == [2.0, 0, 0.5, 0]


@pytest.mark.parametrize(("scope", "wanted"), [("suggested", "state_before"), ("current", "policy.reads_goal")])
def test_a_worker_that_does_not_tell_what_is_paid_by_is_refused_in_one_line(scope: str, wanted: str) -> None:
    with pytest.raises(RuntimeError, match=wanted) as refusal:
        paid(make(scope=scope), episode([KEY]))
    assert "\n" not in str(refusal.value)


def test_goals_pay_nothing_before_they_are_published_and_are_unknown_before_the_table_knows_them() -> None:
    rollout = episode([KEY, UNKNOWN, 0])
    assert make().pay(rollout, TABLE).rewards[:, 0].tolist() == [0, 0, 0]
    before = make().pay(rollout, RewardTable.empty(), published(PRICES))
    assert before.rewards[:, 0].tolist() == [0, 0, 0]
    assert before.known[:, 0].tolist() == [False, False, True]
    assert make().pay(rollout, TABLE, published(PRICES)).known[:, 0].tolist() == [True, False, True]


def test_success_takes_back_what_was_paid_so_that_the_episode_returns_nothing() -> None:
    items = [NEITHER, KEY, DOOR, BOTH, NEITHER]
    rewards = paid(make(neutralise=True), episode(items, success=True))
    assert rewards == [0, 2.0, 0.5, 0, -(2.0 * 2**3 + 0.5 * 2**2)]
    assert np.dot(rewards, 0.5 ** np.arange(5)) == 0.0
    assert paid(make(neutralise=True), episode(items, success=False)) == [0, 2.0, 0.5, 0, 0]
    assert paid(make(neutralise=True), episode([KEY], success=True)) == [0]


def test_what_is_taken_back_is_counted_apart_from_the_goals() -> None:
    mixer = RewardMixer(
        RewardConfig(),
        {MAIN_TERM: TermConfig(), GOAL_TERM: TermConfig(pays=GOAL_TERM, gamma=0.5)},
        GoalsConfig(neutralise=True),
    )
    tables = {MAIN_TERM: RewardTable.empty(), GOAL_TERM: TABLE}
    mixed = mixer.mix(
        [episode([NEITHER] * 3, worker_id="1.0"), episode([KEY, NEITHER, DOOR], success=True)],
        PublishedReward(tables=tables, goals=published(PRICES)),
    )
    mixer.note_paid(mixed, np.ones(2, bool))
    assert paid_rewards(mixer.paid_goals.state_dict()) == pytest.approx({0: 1.0, 200: 0.25, TAKEN_BACK: -4.25})


def test_what_a_long_episode_takes_back_is_bounded() -> None:
    payment, rewards = make(neutralise=True), []
    for number in range(30):
        rewards += paid(payment, episode([KEY] * 100, number=number, success=True if number == 29 else None))
    assert rewards[-1] == -MAX_TAKEN_BACK


def test_neutralise_without_a_discount_factor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"goals.neutralise: got true with learner.gamma=0, wanted"):
        make(gamma=0.0, neutralise=True)


# -- what neutralise leaves optimal
# ------------------------------------------------------------------------------------------------------------------

GAMMA, HORIZON, EXIT = 0.9, 30, 5
MOVES = ((1, 2), (2, 0), (EXIT, 3), (4, 0), (2, 3))
"""State -> the states that two actions lead to. From 0 the way to the exit leads through 2; 3 and 4 are a detour back
to it, on which there are goals; so is 1."""
VISITED = np.arange(100, 106, dtype=np.uint64)


def discounted_returns(settings: GoalsConfig, coefficient: float) -> dict[tuple[int, ...], tuple[float, float]]:
    """By policy, a choice for each state: the return of the task alone, and that with goals."""
    policies = [*itertools.product((0, 1), repeat=len(MOVES))]
    shape = HORIZON, len(policies)
    items, ended = np.zeros(shape, np.uint64), np.zeros(shape, bool)
    for env, policy in enumerate(policies):
        state = 0
        for t in range(HORIZON):
            state = MOVES[state][policy[state]]
            items[t, env], ended[t, env] = VISITED[state], state == EXIT
            if state == EXIT:
                break
    ends = [(int(t), int(env)) for t, env in zip(*np.nonzero(ended), strict=True)]
    done = EpisodeStatistics(episode_return=1.0, length=1, terminated=True, info={})
    rollout = random_rollout(
        *shape,
        caption_ids=items,
        caption_counts=np.ones(shape, np.int32),
        extrinsic_rewards=ended.astype(np.float32),
        terminated=ended,
        truncated=np.zeros(shape, bool),
        episodes=(done,) * len(ends),
        episode_ends=tuple(ends),
    )
    goals = {1: 1, 3: 3, 4: 4}
    achieved = np.array([mask(*([goals[s]] if s in goals else [])) for s in range(len(VISITED))])
    table = RewardTable.build(VISITED, np.ones(len(VISITED)), (0, 1), achieved)
    terms = {
        MAIN_TERM: TermConfig(),
        GOAL_TERM: TermConfig(pays=GOAL_TERM, coefficient=coefficient, gamma=GAMMA),
    }
    mixed: MixedRewards = RewardMixer(RewardConfig(extrinsic_coefficient=1.0), terms, settings).mix(
        [rollout],
        PublishedReward(
            tables={MAIN_TERM: RewardTable.empty(), GOAL_TERM: table}, goals=published(dict.fromkeys((1, 3, 4), 1.0))
        ),
    )
    discounts = GAMMA ** np.arange(HORIZON)
    task, total = discounts @ mixed.extrinsic, discounts @ mixed.total
    return {policy: (float(task[env]), float(total[env])) for env, policy in enumerate(policies)}


def best(returns: dict[tuple[int, ...], float]) -> set[tuple[int, ...]]:
    """The policies of the largest return."""
    largest = max(returns.values())
    return {policy for policy, value in returns.items() if value > largest - 1e-5}


@pytest.mark.parametrize("once", [True, False])
def test_neutralise_leaves_the_tasks_optimal_policy_optimal_and_without_it_goals_do_not(once: bool) -> None:
    coefficient = 0.2 if once else 0.095  # without end the goals must be worth less than the exit
    neutral = discounted_returns(GoalsConfig(neutralise=True, once=once), coefficient)
    plain = discounted_returns(GoalsConfig(once=once), coefficient)
    of_task = best({policy: task for policy, (task, _) in neutral.items()})
    assert best({policy: total for policy, (_, total) in neutral.items()}) == of_task
    assert best({policy: total for policy, (_, total) in plain.items()}).isdisjoint(of_task), "the control"
