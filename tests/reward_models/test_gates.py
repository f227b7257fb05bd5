"""The gates, on made-up episodes of which the right verdict is known, the traps among them."""

from collections.abc import Sequence

import numpy as np
import pytest

from reward_models.gates import (
    Outcomes,
    Verdict,
    distance_gate,
    farming_gate,
    judge,
    preference_gate,
    run_gate,
    static_gate,
)

RNG = np.random.default_rng(7)
SUCCESSES, FAILURES = 8, 12
SHORT, LONG = [90 + i for i in range(SUCCESSES)], [200] * FAILURES
"""Steps of the successes, which end, and of the failures, which the step limit ends."""
LENGTHS = [*SHORT, *LONG]
FEATURES = ("x", "key", "door")


def outcomes(
    *, success: Sequence[bool] | None = None, returns: Sequence[float] | None = None, ends: Sequence[bool] | None = None
) -> Outcomes:
    is_success = [True] * SUCCESSES + [False] * FAILURES
    return Outcomes(
        success=np.array(is_success if success is None else success, bool),
        extrinsic_returns=np.array([float(one) for one in is_success] if returns is None else returns),
        terminated=np.array(is_success if ends is None else ends, bool),
    )


def rewards(in_success: float, in_failure: float, at_end: float = 0.0) -> list[np.ndarray]:
    """So much at each step, and beside it at the last one of a success."""
    found = []
    for number, length in enumerate(LENGTHS):
        found.append(np.full(length, in_success if number < SUCCESSES else in_failure, np.float32))
        found[-1][-1] += np.float32(at_end if number < SUCCESSES else 0)
    return found


def noisy(seed: int = 0, lengths: Sequence[int] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=length).astype(np.float32) for length in lengths]


def unknown(found: list[np.ndarray], share: float, episodes: Sequence[int]) -> list[np.ndarray]:
    """The same, not known at this share of the steps of these episodes."""
    return [
        np.where(np.arange(len(one)) < share * len(one), np.float32(np.nan), one) if number in episodes else one
        for number, one in enumerate(found)
    ]


def assert_abstains(verdict: Verdict, *words: str) -> None:
    assert (verdict.passed, verdict.figure) == (None, None)
    assert "\n" not in verdict.message
    for word in words:
        assert word in verdict.message


@pytest.mark.parametrize(
    ("found", "passed", "figure"),
    [
        (rewards(0, 0, at_end=1), True, 1.0),
        (rewards(0, 0, at_end=-1), False, 0.0),  # an error of the sign
        (rewards(-1, -1), True, 1.0),  # a penalty for every step is right: a success is shorter
        (rewards(1, 1), False, 0.0),  # to stay alive pays more than to finish
        (rewards(0, 0), False, 0.0),  # says nothing
        (rewards(0.1, 0.1, at_end=5), False, 0.0),  # the bonus is less than what a failure collects
        (rewards(0.1, 0.1, at_end=15), True, 1.0),
    ],
)
def test_successes_must_have_the_larger_returns(found: list[np.ndarray], passed: bool, figure: float) -> None:
    verdict = preference_gate(found, outcomes())
    assert (verdict.passed, verdict.figure) == (passed, figure)
    assert "8 successes and 12 failures" in verdict.message


def test_equal_returns_are_not_larger_ones_though_they_were_rounded() -> None:
    found = [np.full(300, 0.1, np.float32) for _ in LENGTHS]
    for one in found[:SUCCESSES]:
        one[:50] = np.float32(0.3)
        one[50:150] = np.float32(0.0)  # the same sum, otherwise rounded
    verdict = preference_gate(found, outcomes())
    assert (verdict.passed, verdict.figure) == (False, 0.0)
    assert "equal ones in 1" in verdict.message


def test_the_share_of_pairs_is_that_of_a_slow_count() -> None:
    found = noisy()
    wins = sum(float(a.sum()) > float(b.sum()) for a in found[:SUCCESSES] for b in found[SUCCESSES:])
    assert preference_gate(found, outcomes()).figure == pytest.approx(wins / (SUCCESSES * FAILURES))


def test_unknown_steps_earn_nothing_and_episodes_with_many_of_them_are_no_evidence() -> None:
    good = rewards(0, 0, at_end=1)
    assert preference_gate(unknown(good, 0.05, range(20)), outcomes()).passed
    few = preference_gate(unknown(good, 0.5, range(3)), outcomes())
    assert few.passed
    assert "5 successes and 12 failures, without 3 whose reward is not known" in few.message
    for gate in (preference_gate, farming_gate):
        assert_abstains(gate(unknown(good, 0.5, range(4)), outcomes()), "4 successes", "5 of each are needed")
        assert_abstains(gate(unknown(good, 1.0, range(20)), outcomes()), "0 successes and 0 failures")
        assert_abstains(gate([], outcomes(success=[], returns=[], ends=[])), "0 successes and 0 failures")


NEVER = [False] * 20
"""No episode says that it was a success."""


def test_without_successes_extrinsic_returns_say_which_end_is_the_better_one() -> None:
    goal, limited = [-100.0 - i for i in range(6)] + [-200.0] * 14, [True] * 6 + [False] * 14
    reached = outcomes(success=NEVER, returns=goal, ends=limited)  # MountainCar
    slower = [np.full(100 + n if n < 6 else 200, 1.0 if n < 6 else 0.1, np.float32) for n in range(20)]
    verdict = preference_gate(slower, reached)  # those that take longer to the goal get more, which is no fault
    assert verdict.passed
    assert (
        "6 that ended by themselves, which have the higher extrinsic returns, and 14 others; there are 0"
        in verdict.message
    )
    assert farming_gate(slower, reached).passed
    fallen = outcomes(success=[True] * 20, returns=[30.0] * 12 + [500.0] * 8, ends=[True] * 12 + [False] * 8)
    upright = [np.ones(30 if n < 12 else 500, np.float32) for n in range(20)]  # CartPole
    assert preference_gate(upright, fallen).passed
    assert "8 that ended by the step limit" in preference_gate(upright, fallen).message
    assert_abstains(farming_gate(upright, fallen), "the step limit ended 0 of 12 worse episodes")


def test_where_the_end_says_nothing_the_highest_returns_stand_for_successes() -> None:
    spread = outcomes(success=[True] * 20, returns=[float(i) for i in range(20)], ends=NEVER)
    rising = [np.full(100, i, np.float32) for i in range(20)]
    assert preference_gate(rising, spread).passed
    assert not preference_gate(rising[::-1], spread).passed
    assert "5 with extrinsic returns from 15 and 5 up to 4; there are 20" in preference_gate(rising, spread).message
    mixed = outcomes(success=NEVER, returns=[float(i) for i in range(20)], ends=[True, False] * 10)
    assert "5 with extrinsic returns from 15" in preference_gate(rising, mixed).message
    rare = outcomes(success=NEVER, returns=[-100.0] * 6 + [-200.0] * 14, ends=NEVER)
    assert "6 with extrinsic returns from -100 and 14 up to -200" in preference_gate(rising[::-1], rare).message
    same = outcomes(success=NEVER, returns=[-200.0] * 20, ends=NEVER)
    assert_abstains(preference_gate(rising, same), "0 better ones and 20 worse ones")
    rarer = outcomes(success=NEVER, returns=[-100.0] * 4 + [-200.0] * 16, ends=[True] * 4 + [False] * 16)
    assert_abstains(farming_gate(rising, rarer), "4 better ones and 16 worse ones")


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        (rewards(0.3, 0.5), False),  # hovering near the goal
        (rewards(0.5, 0.3), True),
        (rewards(0.4, 0.4), True),
        (rewards(-0.5, -0.1), True),  # minus the distance: who lingers near the goal pays less, but success ends it
        (rewards(-0.5, 0.1), False),
    ],
)
def test_what_lingers_must_not_be_paid_more_than_what_succeeds(found: list[np.ndarray], passed: bool) -> None:
    assert farming_gate(found, outcomes()).passed is passed


def test_where_success_does_not_end_the_episode_lingering_is_compared_with_it_as_it_is() -> None:
    verdict = farming_gate(rewards(-0.5, -0.1), outcomes(ends=[False] * 20))
    assert verdict.passed is False
    assert verdict.figure == pytest.approx(0.4)


def test_a_difference_within_the_error_of_few_episodes_is_no_verdict() -> None:
    found = noisy(lengths=[4] * 20)
    found[-1] += 0.9 * len(found)  # one outlier, among the failures
    verdict = farming_gate(found, outcomes())
    assert verdict.passed is None
    assert verdict.figure is not None
    assert "within the error" in verdict.message


def test_failures_that_end_by_themselves_do_not_linger() -> None:
    ends = [True] * 16 + [False] * 4
    assert_abstains(
        farming_gate(rewards(0.3, 0.5), outcomes(ends=ends)), "the step limit ended 4 of 12", "5 are needed"
    )


def test_a_reward_that_was_trained_on_is_recognised() -> None:
    found = noisy()
    for same in (found, [3 * one for one in found], [one + np.float32(1e-8) * n for n, one in enumerate(found)]):
        verdict = distance_gate(same, {"other": noisy(1), "trained": found})
        assert verdict.passed is False
        assert verdict.figure == pytest.approx(0.0, abs=1e-4)
        assert "from trained" in verdict.message
    assert distance_gate([-one for one in found], {"trained": found}).figure == pytest.approx(1.0)
    assert distance_gate(noisy(2), {"trained": found, "other": noisy(1)}).passed


def test_a_penalty_per_step_makes_another_reward_only_where_episodes_differ_in_length() -> None:
    found = noisy()
    assert distance_gate([one - 1 for one in found], {"trained": found}).passed
    even = noisy(lengths=[100] * 20)
    assert distance_gate([one - 1 for one in even], {"trained": even}).passed is False


def test_returns_that_only_rounding_tells_apart_do_not_make_another_reward() -> None:
    height = [np.concatenate([[0], RNG.random(length - 1), [1]]).astype(np.float32) for length in LENGTHS]
    gains = [np.diff(one) for one in height]  # each sums to 1
    rounded = [np.diff(np.float32(3.3) * one) for one in height]
    assert distance_gate(rounded, {"trained": gains}).passed is False


def test_distances_to_nothing_and_to_what_is_not_known_are_no_verdict() -> None:
    found = noisy()
    assert_abstains(distance_gate(found, {}), "no earlier reward")
    nowhere = [np.full_like(one, np.nan) for one in found]
    assert_abstains(distance_gate(found, {"trained": nowhere}), "fewer than 100 steps", "by trained")
    assert_abstains(distance_gate(found, {"far": noisy(1), "trained": nowhere}), "by trained")
    assert distance_gate(found, {"same": found, "trained": nowhere}).passed is False


def test_a_reward_must_be_known_and_vary() -> None:
    assert run_gate(noisy()).passed
    few = run_gate(unknown(noisy(), 0.03, range(20)))
    assert few.passed is False
    assert few.figure == pytest.approx(0.97, abs=0.005)
    assert run_gate(unknown(noisy(), 0.005, range(20))).passed
    for constant in (0.0, 0.1, -1.0):
        assert "tells none from another" in run_gate(rewards(constant, constant)).message
        assert run_gate(rewards(constant, constant)).passed is False
    assert_abstains(run_gate([np.ones(99, np.float32)]), "99 steps, and 100 are needed")
    assert_abstains(run_gate([]), "0 steps")
    assert run_gate([np.full(200, np.nan, np.float32)]).passed is False


@pytest.mark.parametrize("factor", [1e-5, 400.0])
def test_a_reward_of_an_awkward_size_passes_with_the_factor_that_helps(factor: float) -> None:
    verdict = run_gate([np.float32(factor) * one for one in noisy()])
    assert verdict.passed
    told = float(verdict.message.partition("multiply it by ")[2].partition(",")[0])
    assert told * factor == pytest.approx(1.0, rel=0.1)
    assert "multiply" not in run_gate(noisy()).message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("after.x - before.x", None),
        ("state.key + state.door", None),
        ("1.0 if after.x > 123.5 and before.key == 7 else 0.0", None),
        ("near(after.x, 876.5, 0.01)", None),
        ("(action == 20) * after.key", None),
        ("1 / (after.x - after.x)", "no number for any"),
        ("action == 1", "reads none of the features x, key, door"),
        ("after.height", "height"),
        ("def reward(before, after, start, action):\n    return open('x')", "line 2"),
    ],
)
def test_programs_that_compile_read_a_feature_and_vary_pass(text: str, words: str | None) -> None:
    verdict = static_gate(text, FEATURES)
    assert verdict.passed is (words is None)
    assert "\n" not in verdict.message
    assert (words or "reads") in verdict.message


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("after.x == 3 and after.key == 4 and after.door == 1 and before.key == 1 and before.door == 0", "0"),
        ("0 * after.x", "0"),
        ("after.x - after.x + 2", "2"),
    ],
)
def test_the_static_gate_abstains_where_a_program_may_only_pay_rarely(text: str, number: str) -> None:
    verdict = static_gate(text, FEATURES)
    assert verdict.passed is None
    assert verdict.message == f"{number} for each of 16,384 made-up transitions: it pays rarely, or is a constant"


def test_all_gates_judge_the_same_episodes() -> None:
    found = rewards(0, 0, at_end=1)
    verdicts = judge(found, outcomes(), {"trained": noisy()})
    assert [verdict.gate for verdict in verdicts] == ["run", "preference", "distance", "farming"]
    assert all(verdict.passed for verdict in verdicts)
    for name, other in (("trained", found[:-1]), ("trained", [*found, found[0]])):
        with pytest.raises(ValueError, match=f"{name}: got"):
            judge(found, outcomes(), {name: other})
