"""Success rates, relevance and sampling weights, against slow references."""

import numpy as np
import pytest

from configs.goal_schema import MAX_GOALS
from learner.checkpoint import load_checkpoint, save_checkpoint
from reward_models.goals.statistics import BY_GOAL, EARLIER, RECENT, GoalStatistics
from reward_models.goals.weights import FLOOR, RIDGE, logistic, payments, relevance, sampling_weights

ACTIVE = np.arange(MAX_GOALS) < 8


def counts(**given: object) -> dict[str, object]:
    """A report; arrays are given by goal -> number."""
    made: dict[str, object] = {name: np.zeros(MAX_GOALS, np.int64) for name in BY_GOAL} | {
        "successes": 0,
        "failures": 0,
    }
    for name, value in given.items():
        if isinstance(value, dict):
            for goal, number in value.items():
                made[name][goal] = number  # type: ignore[index]
        else:
            made[name] = value
    return made


def slow_rate(tries: list[float], decay: float) -> float:
    """Each try's success, the newest weighted most."""
    weights = [decay**age for age in range(len(tries))][::-1]
    return float(np.average(tries, weights=weights))


@pytest.mark.parametrize("sizes", [(1,) * 40, (5, 1, 0, 30, 4), (40,)])
def test_rates_are_those_of_all_tries_one_by_one_whatever_reports_they_came_in(sizes: tuple[int, ...]) -> None:
    rng, statistics, tries = np.random.default_rng(3), GoalStatistics(is_given=True), []
    for size in sizes:
        hits = int(rng.integers(0, size + 1))
        tries += [hits / size] * size if size else []
        statistics.add(counts(attempted={3: size}, given_achieved={3: hits}), ACTIVE)
    recent, earlier = slow_rate(tries, RECENT), slow_rate(tries, EARLIER)
    assert statistics.success_rates[3] == pytest.approx(recent)
    assert statistics.progress[3] == pytest.approx(abs(recent - earlier))
    assert np.isnan(statistics.success_rates[[0, 200]]).all()
    assert statistics.tries[3] == sum(sizes)


def test_a_hit_that_is_reported_after_its_try_counts_and_a_rate_never_exceeds_one() -> None:
    statistics = GoalStatistics(is_given=True)
    statistics.add(counts(attempted={0: 1}), ACTIVE)
    assert statistics.success_rates[0] == 0
    statistics.add(counts(given_achieved={0: 1}), ACTIVE)
    assert statistics.success_rates[0] == 1
    statistics.add(counts(given_achieved={0: 1}), ACTIVE)
    assert statistics.success_rates[0] == 1


def test_without_a_policy_that_is_given_goals_every_episode_tries_each_active_one() -> None:
    statistics = GoalStatistics(is_given=False)
    report = counts(achieved_in_successes={1: 2}, achieved_in_failures={1: 1, 2: 3}, successes=2, failures=4)
    statistics.add(report, ACTIVE)
    assert statistics.success_rates[[0, 1, 2]].tolist() == pytest.approx([0, 0.5, 0.5])
    assert np.isnan(statistics.success_rates[8])
    assert statistics.achieved_per_episode == pytest.approx(1.0)
    statistics.add(report, ACTIVE)
    assert statistics.totals["achieved_in_failures"][:3].tolist() == [0, 2, 6]
    assert (statistics.totals["successes"], statistics.totals["failures"]) == (4, 8)


def test_statistics_survive_a_checkpoint_exactly(tmp_path) -> None:
    first, second = GoalStatistics(True), GoalStatistics(True)
    report = counts(attempted={1: 9, 2: 3}, given_achieved={1: 4}, achieved={1: 5}, successes=2, failures=9)
    first.add(report, ACTIVE)
    path = save_checkpoint(tmp_path, 1, {"goals": first.state_dict()}, keep=1)
    second.load_state_dict(load_checkpoint(path)["goals"])
    for one in (first, second):
        one.add(report, ACTIVE)
    np.testing.assert_array_equal(first.success_rates, second.success_rates)
    np.testing.assert_array_equal(first.progress, second.progress)
    assert first.totals["successes"] == second.totals["successes"] == 4


# -- relevance


def outcomes(successes: int, failures: int, by_goal: dict[int, tuple[int, int]]) -> GoalStatistics:
    statistics = GoalStatistics(False)
    in_successes = {goal: pair[0] for goal, pair in by_goal.items()}
    in_failures = {goal: pair[1] for goal, pair in by_goal.items()}
    report = counts(
        achieved_in_successes=in_successes, achieved_in_failures=in_failures, successes=successes, failures=failures
    )
    statistics.add(report, ACTIVE)
    return statistics


def vectors(num: int, size: int = 12, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(num, size))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("successes", "failures"), [(9, 100), (0, 0), (100, 0)])
def test_relevance_is_1_before_there_are_ten_successes_and_a_failure(successes: int, failures: int) -> None:
    statistics = outcomes(successes, failures, {0: (successes, 0), 1: (0, failures)})
    assert relevance(vectors(2), vectors(1)[0], statistics).tolist() == [1, 1]


def test_what_is_achieved_in_successes_is_relevant_and_what_is_achieved_everywhere_is_in_between() -> None:
    statistics = outcomes(20, 180, {0: (20, 2), 1: (10, 90), 2: (1, 150)})
    found = relevance(vectors(4), vectors(1, seed=9)[0], statistics)
    assert found[0] > 0.8 > 0.6 > found[1] > 0.4 > 0.2 > found[2]
    assert 0 < found[3] < 1


def test_a_goal_that_was_never_achieved_has_the_relevance_of_goals_like_it() -> None:
    goals = vectors(4)
    goals[2], goals[3] = goals[0] + 0.1 * goals[2], goals[1] + 0.1 * goals[3]
    found = relevance(goals, np.abs(vectors(1, seed=9)[0]), outcomes(20, 100, {0: (20, 0), 1: (0, 100)}))
    assert found[2] > 0.6 > 0.4 > found[3]


def test_relevance_minimises_the_penalised_loss_over_single_achievements() -> None:
    rng = np.random.default_rng(5)
    features = np.hstack([rng.normal(size=(7, 5)), np.ones((7, 1))])
    achieved = rng.integers(0, 12, size=(2, 7)).astype(float)
    positive, negative = achieved / achieved.sum()
    fitted = logistic(features, positive, negative)
    w = np.zeros(6)
    for _ in range(20_000):  # plain descent, an achievement at a time
        gradient = RIDGE * w
        for x, wins, losses in zip(features, positive, negative, strict=True):
            p = 1 / (1 + np.exp(-x @ w))
            gradient = gradient + (losses * p - wins * (1 - p)) * x
        w = w - 0.5 * gradient
    np.testing.assert_allclose(fitted, 1 / (1 + np.exp(-features @ w)), atol=1e-4)


def test_inactive_goals_pay_nothing() -> None:
    paid = payments(np.arange(MAX_GOALS) == 1, np.array([0.5, 0.25, 1.0]))
    assert paid.dtype == np.float32
    assert paid[:3].tolist() == [0, 0.25, 0]
    assert not paid[3:].any()


# -- sampling


def tried(rates: dict[int, list[float]]) -> GoalStatistics:
    """By goal the successes of its tries in turn."""
    statistics = GoalStatistics(True)
    for goal, tries in rates.items():
        for success in tries:
            statistics.add(counts(attempted={goal: 1}, given_achieved={goal: int(success)}), ACTIVE)
    return statistics


def test_uniform_draws_each_active_goal_alike() -> None:
    weights = sampling_weights("uniform", tried({0: [1] * 9}), ACTIVE)
    assert weights.dtype == np.float32
    assert weights.tolist() == ACTIVE.astype(float).tolist()


def test_difficulty_draws_goals_of_a_middling_success_rate_and_those_never_tried() -> None:
    statistics = tried({0: [1] * 30, 1: [0] * 30, 2: [0, 1] * 15, 3: [1, 1, 1, 0] * 8})
    weights = sampling_weights("difficulty", statistics, ACTIVE)
    rates = statistics.success_rates
    wanted = [active and (np.isnan(rate) or 0.05 <= rate <= 0.75) for active, rate in zip(ACTIVE, rates, strict=True)]
    assert weights.tolist() == [float(each) for each in wanted]
    assert weights[:3].tolist() == [0, 0, 1]


def test_difficulty_draws_all_where_none_is_middling() -> None:
    only = np.arange(MAX_GOALS) < 2
    assert sampling_weights("difficulty", tried({0: [1] * 30, 1: [0] * 30}), only).tolist() == only.tolist()


def test_progress_draws_what_changes_in_either_direction() -> None:
    history = {0: [0] * 40, 1: [0] * 30 + [1] * 10, 2: [1] * 30 + [0] * 10, 3: [1] * 40}
    weights = sampling_weights("progress", tried(history), ACTIVE)
    changes = {n: abs(slow_rate(tries, RECENT) - slow_rate(tries, EARLIER)) for n, tries in history.items()}
    floor, most = FLOOR * np.mean([*changes.values()]), max(changes.values())
    wanted = [max(changes[n], floor) if n in changes else most for n in range(8)]
    np.testing.assert_allclose(weights[:8], wanted, rtol=1e-5)
    assert not weights[8:].any()


def test_progress_draws_all_alike_before_anything_has_changed() -> None:
    assert sampling_weights("progress", GoalStatistics(True), ACTIVE).tolist() == ACTIVE.tolist()
    assert not sampling_weights("progress", GoalStatistics(True), np.zeros(MAX_GOALS, bool)).any()
