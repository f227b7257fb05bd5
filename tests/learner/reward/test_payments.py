"""What each payment pays, on episodes short enough to write down, and what potentials leave as it is."""

from typing import Any

import numpy as np
import pytest

from actors.rollout import Rollout
from configs.reward_schema import TermConfig
from learner.reward.payments import PAYMENTS, Payment
from reward_models.table import RewardTable
from tests.learner.toy_rollouts import random_rollout

LOW, MIDDLE, HIGH, UNKNOWN, EMPTY = 21, 22, 23, 24, 0
TABLE = RewardTable.build(np.array([LOW, MIDDLE, HIGH], np.uint64), np.array([0.1, 0.5, 0.9]), (0, 1))


def steps(
    states: list[int], *, start: int = LOW, terminated: list[int] | None = None, truncated: list[int] | None = None,
    resets: int = LOW, number: int = 0, counts: list[int] | None = None,
) -> Rollout:  # fmt: skip
    """One environment's steps to `states`, from `start`; episodes end at the steps named, the next begins in
    `resets`."""
    shape = len(states), 1
    ends = {name: np.zeros(shape, bool) for name in ("terminated", "truncated")}
    ends["terminated"][terminated or []] = ends["truncated"][truncated or []] = True
    done = (ends["terminated"] | ends["truncated"])[:, 0].tolist()
    before = [start, *(resets if is_done else state for state, is_done in zip(states, done, strict=True))][:-1]
    signals = {
        "state": np.array(states, np.uint64)[:, None],
        "state_before": np.array(before, np.uint64)[:, None],
        "state_counts": np.array(counts or [1] * len(states), np.int32)[:, None],
    }
    return random_rollout(*shape, **ends, signals=signals, sequence_number=number)


def make(pays: str, **settings: Any) -> Payment:
    return PAYMENTS[pays](TermConfig(reads="state", pays=pays, **settings))


def paid(payment: Payment, rollout: Rollout, table: RewardTable = TABLE) -> list[float]:
    rewards = payment.pay(rollout, table).rewards
    assert rewards.dtype == np.float32
    return rewards[:, 0].tolist()


def approx(*values: float) -> Any:
    return pytest.approx(values, abs=1e-6)


def test_events_of_any_channel_are_paid_by_their_own_counts() -> None:
    rollout = steps([HIGH, HIGH, EMPTY, UNKNOWN, LOW], counts=[1, 2, 1, 1, 4])
    assert paid(make("event", count_exponent=1.0, coefficient=2.0), rollout) == approx(1.8, 0.9, 0, 0, 0.05)


def test_a_potential_pays_what_the_step_gained() -> None:
    assert paid(make("potential", gamma=0.5), steps([HIGH, LOW, MIDDLE])) == approx(0.35, -0.85, 0.15)


def test_a_potential_ends_at_0_where_the_episode_terminated_and_keeps_its_value_where_it_was_truncated() -> None:
    rollout = steps([HIGH, MIDDLE, MIDDLE, HIGH], terminated=[1], truncated=[2], resets=LOW)
    assert paid(make("potential", gamma=1.0), rollout) == approx(0.8, -0.9, 0.4, 0.8)


def test_a_potential_needs_the_values_of_both_states_but_not_of_a_terminal_one() -> None:
    rollout = steps([UNKNOWN, HIGH, UNKNOWN, HIGH], terminated=[2])
    step_rewards = make("potential", gamma=1.0).pay(rollout, TABLE)
    assert step_rewards.rewards[:, 0].tolist() == approx(0, 0, -0.9, 0.8)
    assert step_rewards.known[:, 0].tolist() == [False, False, True, True]
    assert step_rewards.items[2, 0] == EMPTY, "the end has no state that sums could be kept for"


def test_a_potential_of_an_empty_state_is_0_so_that_passing_through_it_pays_nothing_in_sum() -> None:
    rewards = paid(make("potential", gamma=1.0), steps([HIGH, EMPTY, HIGH, EMPTY, LOW]))
    assert rewards == approx(0.8, -0.9, 0.9, -0.9, 0.1)
    assert sum(rewards) == pytest.approx(0.0, abs=1e-6)


def test_an_improvement_is_paid_once_however_often_one_goes_to_and_fro() -> None:
    improvement = make("improvement", coefficient=10.0)
    assert paid(improvement, steps([MIDDLE, LOW, MIDDLE, HIGH])) == approx(4, 0, 0, 4)
    assert paid(improvement, steps([LOW, HIGH], start=HIGH, number=1)) == approx(0, 0), "the episode goes on"


def test_an_improvement_begins_with_each_episode_and_with_its_reset_state() -> None:
    rollout = steps([HIGH, HIGH, MIDDLE, HIGH], terminated=[0], resets=MIDDLE)
    assert paid(make("improvement"), rollout) == approx(0.8, 0.4, 0, 0)


def test_the_first_known_value_of_an_episode_is_no_improvement() -> None:
    rollout = steps([UNKNOWN, EMPTY, MIDDLE, UNKNOWN, HIGH], start=UNKNOWN)
    assert paid(make("improvement"), rollout) == approx(0, 0, 0, 0, 0.4)


def test_a_new_table_that_values_a_state_more_highly_is_no_improvement_of_that_state() -> None:
    improvement = make("improvement")
    paid(improvement, steps([MIDDLE]))
    higher = RewardTable.build(np.array([LOW, MIDDLE, HIGH], np.uint64), np.array([0.1, 2.0, 2.5]), (0, 2))
    assert paid(improvement, steps([MIDDLE, HIGH], start=MIDDLE, number=1), higher) == approx(0, 0.5)


def test_visits_of_the_run_are_counted_over_environments_episodes_and_rollouts() -> None:
    visits = make("visits", bins=2)  # LOW lies in the first, MIDDLE and HIGH in the second
    rollout = steps([LOW, HIGH, MIDDLE, EMPTY, UNKNOWN, LOW], terminated=[2])
    assert paid(visits, rollout) == approx(1, 1, 2**-0.5, 0, 0, 2**-0.5)
    assert paid(visits, steps([MIDDLE, LOW])) == approx(3**-0.5, 3**-0.5)


def test_visits_of_the_episode_begin_anew_with_each() -> None:
    visits = make("visits", bins=2, visits_of="episode", coefficient=2.0)
    rollout = steps([LOW, HIGH, MIDDLE, EMPTY, UNKNOWN, LOW], terminated=[2])
    assert paid(visits, rollout) == approx(2, 2, 2**0.5, 0, 0, 2)
    assert paid(visits, steps([LOW, HIGH], number=1)) == approx(2**0.5, 2)


def test_values_beyond_0_and_1_lie_in_the_outer_bins() -> None:
    ids = np.array([LOW, MIDDLE, HIGH], np.uint64)
    table = RewardTable.build(ids, np.array([-3.0, 1.0, 7.0]), (0, 1))
    visits = make("visits", bins=10)
    paid(visits, steps([LOW, MIDDLE, HIGH]), table)
    assert visits.state_dict()["run"].tolist() == [1, *[0] * 8, 2]


def test_a_channel_that_the_worker_did_not_collect_is_named() -> None:
    said = r"worker 0\.0 has the signals caption, caption_counts, but a term of the reward reads state:"
    with pytest.raises(RuntimeError, match=said):
        make("event").pay(random_rollout(), TABLE)


# -- a decision problem of five states, whose last one is terminal
# ------------------------------------------------------------------------------------------------------------------

NUM_STATES, NUM_ACTIONS, GAMMA = 5, 3, 0.9
STATES = np.arange(31, 31 + NUM_STATES).astype(np.uint64)


def decision_problem(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Transition probabilities and rewards [S, A, S]."""
    chances = rng.dirichlet(np.full(NUM_STATES, 0.3), (NUM_STATES, NUM_ACTIONS))
    return chances, rng.normal(size=chances.shape)


def best_actions(chances: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, float]:
    """The optimal action of each state that is not terminal, and by how much it is better than the next, at least."""
    values = np.zeros(NUM_STATES)
    for _ in range(400):
        qualities = (chances * (rewards + GAMMA * values)).sum(-1)
        values = np.append(qualities.max(-1)[:-1], 0.0)
    ordered = np.sort(qualities[:-1], axis=1)
    return qualities[:-1].argmax(-1), float((ordered[:, -1] - ordered[:, -2]).min())


def paid_in(pays: str, potential: np.ndarray) -> np.ndarray:
    """[S, 1, S]: what a term pays for each transition, whatever the action, by the real payment."""
    before, after = (array.reshape(-1, 1) for array in np.meshgrid(STATES, STATES, indexing="ij"))
    ends = after == STATES[-1]
    rollout = random_rollout(
        len(after),
        1,
        terminated=ends,
        truncated=np.zeros_like(ends),
        signals={"state": after, "state_before": before, "state_counts": np.ones(after.shape, np.int32)},
    )
    rewards = make(pays, gamma=GAMMA, count_exponent=1.0).pay(rollout, RewardTable.build(STATES, potential, (0, 1)))
    return rewards.rewards.reshape(NUM_STATES, 1, NUM_STATES).astype(np.float64)


def test_no_potential_changes_the_optimal_policy_and_events_on_the_same_values_do() -> None:
    rng = np.random.default_rng(1)
    changed = {"potential": 0, "event": 0}
    for _ in range(100):
        margin = 0.0
        while margin < 0.01:  # ties are settled by rounding
            chances, rewards = decision_problem(rng)
            actions, margin = best_actions(chances, rewards)
        potential = 3 * rng.normal(size=NUM_STATES)
        for pays in changed:
            shaped, _ = best_actions(chances, rewards + paid_in(pays, potential))
            changed[pays] += bool((shaped != actions).any())
    assert changed["potential"] == 0
    assert changed["event"] > 50
