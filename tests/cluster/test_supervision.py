import numpy as np
import pytest

from cluster.supervision import (
    ENVIRONMENT_MINIMUM,
    LONGEST_PAUSE_S,
    MAX_NOTICES,
    EnvironmentBudget,
    GiveUp,
    Notices,
    restart_pause_s,
)
from tests.learner.toy_rollouts import random_rollout


def test_a_first_failure_costs_no_pause_and_a_crash_loop_ever_longer_ones_until_it_ends_the_run() -> None:
    what, setting = "worker 0 failed: bus error", "cluster.max_worker_restarts"
    pauses = [restart_pause_s(failures, what, 7, setting) for failures in range(1, 8)]
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S]
    with pytest.raises(
        GiveUp,
        match=r"worker 0 failed: bus error \(8 times in a row without progress; cluster.max_worker_restarts = 7\)",
    ):
        restart_pause_s(8, what, 7, setting)


def test_no_restarts_at_all_may_be_asked_for() -> None:
    with pytest.raises(GiveUp, match="may not be started again"):
        restart_pause_s(1, "worker 0 failed", 0, "x")


def test_a_kind_of_failure_is_told_once_and_counted_afterwards() -> None:
    notices = Notices()
    assert [notices.note(f"killed (process {pid})", f"worker 0.1-{pid} is replaced:\nkilled") for pid in range(3)] == [
        1,
        2,
        3,
    ]
    assert notices.told == ["worker 0.1-0 is replaced: killed"]
    assert notices.note("out of memory", "worker 1.1-0 is replaced: out of memory") == 1
    assert len(notices.told) == 2


def test_what_is_told_is_bounded_however_many_kinds_there_are() -> None:
    notices = Notices()
    for i in range(1000):
        kind = chr(ord("a") + i % 26) * (i + 1)
        notices.note(kind, kind * 1000)
    assert len(notices.told) == MAX_NOTICES
    assert max(map(len, notices.told)) <= 600


def test_environments_that_raise_now_and_then_are_counted_and_told_once() -> None:
    notices = Notices()
    budget = EnvironmentBudget(0.5, notices)
    for i in range(100):
        lost = (i % 4,) if i % 2 else ()
        error = f"Traceback ...\nValueError: bad level {i}\n" if lost else ""
        budget.note(random_rollout(num_envs=4, lost=lost, environment_errors=len(lost), environment_error=error))
    assert budget.errors == 50
    assert notices.told == [
        "an environment of worker 0.0 failed and is rebuilt, its sample dropped: ValueError: bad level 1"
    ]


def test_environments_that_raise_all_the_time_end_the_run_with_what_they_raised() -> None:
    budget = EnvironmentBudget(0.5, Notices())
    rollout = random_rollout(
        num_envs=4, lost=(0, 1, 3), environment_errors=3, environment_error="Traceback ...\nOSError: no game\n"
    )
    for _ in range(ENVIRONMENT_MINIMUM - 1):
        budget.note(rollout)
    with pytest.raises(GiveUp, match=r"75% of .* lost \(cluster.max_environment_loss = 0.5\): OSError: no game"):
        budget.note(rollout)


def test_the_kept_columns_of_a_rollout_are_those_that_did_not_raise() -> None:
    whole = random_rollout(num_envs=4)
    kept = random_rollout(num_envs=4, lost=(1, 2)).without_lost()
    assert kept.num_steps == whole.num_steps // 2
    np.testing.assert_array_equal(kept.actions, whole.actions[:, [0, 3]])
    np.testing.assert_array_equal(kept.obs["sign"], whole.obs["sign"][:, [0, 3]])
    np.testing.assert_array_equal(kept.core_state["h"], whole.core_state["h"][[0, 3]])
    assert whole.without_lost() is whole
