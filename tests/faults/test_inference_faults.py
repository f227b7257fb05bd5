"""With `actors.inference=central`, workers whose inference actor dies or hangs are replaced with it, one that dies
disturbs no other, and the run trains to its end."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.run.temporary import temporary_directory
from tests.faults.toy_runs import is_alive, seconds_until, toy_run
from tests.run_processes import actors_of, wait_until

pytestmark = pytest.mark.faults
CENTRAL = ("actors.inference=central", "policy.core=lstm", "policy.core_size=8")


@pytest.mark.slow
def test_an_inference_actor_that_dies_or_hangs_is_replaced_with_its_workers_and_a_dead_worker_alone(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    before = set(os.listdir("/dev/shm"))
    timeout = "cluster.worker_timeout_s=10"
    options = "env.options={step_s: 0.005}"
    with toy_run(tmp_path, *CENTRAL, options, timeout, "total_env_steps=1000000000") as run:
        wait_until(lambda: run.last_line().get("workers_running") == 2, run.process, run.log)
        restarts = 0
        for actor, fault, what, lost in (
            ("WorkerActor", signal.SIGKILL, "kill -9 of a rollout worker that an inference actor serves", 1),
            ("InferenceActor", signal.SIGKILL, "kill -9 of an inference actor", 2),
            ("InferenceActor", signal.SIGSTOP, "SIGSTOP of an inference actor", 2),
        ):
            inference = actors_of(run.run_dir, "InferenceActor")
            assert len(inference) == 1
            victim = actors_of(run.run_dir, actor)[0]
            began, restarts = time.monotonic(), restarts + lost
            victim.send_signal(fault)
            wait_until(lambda expected=restarts: run.last_line()["worker_restarts"] >= expected, run.process, run.log)
            wait_until(lambda: run.last_line()["workers_running"] == 2, run.process, run.log)
            recovery_s = time.monotonic() - began
            seconds_until(lambda victim=victim: not is_alive(victim), 10)
            assert is_alive(inference[0]) == (actor == "WorkerActor")
            steps = run.last_line()["env_steps"]
            wait_until(lambda steps=steps: run.last_line()["env_steps"] > steps + 400, run.process, run.log)
            alone = "the other goes on" if actor == "WorkerActor" else "it is replaced with its workers"
            record_recovery(what, f"{alone}, no partial rollout is trained on, steps exact", round(recovery_s, 1))
        assert run.stop() == 0, run.output()
        run.assert_steps_are_exact()
        output = run.output()
    assert "the inference actor inference-0." in output
    assert "no sign of life within half of cluster.worker_timeout_s = 10 s" in output
    assert set(os.listdir("/dev/shm")) <= before
    assert not temporary_directory(str(run.run_dir)).exists()


def test_a_run_with_central_inference_trains_to_its_end(tmp_path: Path) -> None:
    with toy_run(tmp_path, *CENTRAL, "total_env_steps=800") as run:
        assert run.process.wait(120) == 0, run.output()
        run.assert_steps_are_exact()
        last = run.last_line()
        assert last["env_steps"] >= 800
        assert last["policy_lag_max"] <= 6
        assert last["rollouts_dropped_stale"] == 0
        assert last["worker_restarts"] == 0
