import time

import pytest

from cluster.run.stage_timing import StageClock, bottleneck


def sleep_and_fail(seconds: float) -> None:
    time.sleep(seconds)
    raise ZeroDivisionError


def test_shares_are_of_the_interval_and_the_rest_is_idle_or_other() -> None:
    clock = StageClock(num_workers=2)
    clock.add_rollout({"env": 4.0, "inference": 2.0, "other": 1.0})
    clock.add_rollout({"env": 4.0, "inference": 2.0, "other": 1.0})
    clock.add_learner({"relabel": 0.5, "transfer": 0.5, "train": 6.0})
    clock.add_learner({"train": 1.0})
    line = clock.take_line(10.0)
    assert line == pytest.approx(
        {
            "worker_env_fraction": 0.4,
            "worker_inference_fraction": 0.2,
            "worker_other_fraction": 0.1,
            "worker_idle_fraction": 0.3,
            "learner_wait_fraction": 0.0,
            "learner_relabel_fraction": 0.05,
            "learner_transfer_fraction": 0.05,
            "learner_train_fraction": 0.7,
            "learner_publish_fraction": 0.0,
            "learner_other_fraction": 0.2,
        }
    )
    assert not any(
        share
        for name, share in clock.take_line(10.0).items()
        if name not in ("worker_idle_fraction", "learner_other_fraction")
    )


def test_a_stage_that_fails_is_counted_all_the_same() -> None:
    clock = StageClock(num_workers=1)
    started = time.perf_counter()
    with pytest.raises(ZeroDivisionError), clock.learner("publish"):
        sleep_and_fail(0.01)
    spent = time.perf_counter() - started
    assert 0.01 <= clock.take_line(1.0)["learner_publish_fraction"] <= spent


@pytest.mark.parametrize(
    ("wait", "env", "inference", "idle", "words"),
    [
        (0.01, 0.4, 0.2, 0.3, "learner-bound"),
        (0.5, 0.6, 0.3, 0.02, "worker-bound: environment 60%"),
        (0.5, 0.3, 0.6, 0.02, "worker-bound: inference 60%"),
        (0.4, 0.3, 0.2, 0.4, "held up in between"),
    ],
)
def test_whoever_is_never_idle_is_the_bottleneck(
    wait: float, env: float, inference: float, idle: float, words: str
) -> None:
    line = {
        "worker_env_fraction": env,
        "worker_inference_fraction": inference,
        "worker_idle_fraction": idle,
        "learner_wait_fraction": wait,
        "learner_train_fraction": 1 - wait,
    }
    assert words in (bottleneck(line, "local") or "")
    assert "one process" in (bottleneck(line, "inline") or "")


def test_before_the_first_line_there_is_no_bottleneck() -> None:
    assert bottleneck({"env_steps": 5}, "local") is None
