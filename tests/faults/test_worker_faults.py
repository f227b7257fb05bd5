"""Rollout workers that die, crash, hang and are stopped are replaced; what they had not finished is never trained
on."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.toy_runs import is_alive, seconds_until, toy_run
from tests.run_processes import actors_of, lines, wait_until

pytestmark = pytest.mark.faults
TIMEOUT_S = 5
FAULTS = {
    "kill": "kill -9 of a rollout worker in the midst of a rollout",
    "stop": "SIGSTOP of a rollout worker",
    "hold": "an environment that hangs in C and holds the GIL",
    "hang": "an environment that hangs in C without the GIL",
}


@pytest.mark.parametrize(
    "faults", [("kill", "hang"), pytest.param(("stop", "hold"), marks=pytest.mark.slow)], ids=" and ".join
)
def test_whatever_befalls_a_worker_it_is_replaced_and_no_partial_rollout_is_trained(
    faults: tuple[str, ...], tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    orders = tmp_path / "orders"
    orders.mkdir()
    # 10 steps of 4 environments of 5 ms each: a rollout takes 200 ms, so a worker dies in the midst of one.
    options = f"env.options={{step_s: 0.005, orders: {orders}}}"
    with toy_run(tmp_path, options, f"cluster.worker_timeout_s={TIMEOUT_S}", "total_env_steps=1000000000") as run:
        wait_until(lambda: run.last_line().get("workers_running") == 2, run.process, run.log)
        for number, fault in enumerate(faults, start=1):
            before = {worker.pid: worker for worker in actors_of(run.run_dir, "WorkerActor")}
            steps = run.last_line()["env_steps"]
            began = time.monotonic()
            if fault in ("kill", "stop"):
                victim = next(iter(before.values()))
                victim.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
            else:
                (orders / fault).touch()
            wait_until(lambda number=number: run.last_line()["worker_restarts"] == number, run.process, run.log)
            wait_until(lambda: run.last_line()["workers_running"] == 2, run.process, run.log)
            recovery_s = time.monotonic() - began
            seconds_until(lambda before=before: sum(map(is_alive, before.values())) == 1, 10)
            wait_until(lambda steps=steps: run.last_line()["env_steps"] > steps + 400, run.process, run.log)
            holds = "no partial rollout is trained on, steps exact, the process ended and replaced"
            record_recovery(FAULTS[fault], holds, round(recovery_s, 1))
        assert run.stop() == 0, run.output()
        run.assert_steps_are_exact()
        told = 2 if "kill" in faults else 1
        assert run.output().count("is replaced") == told, "a death and a hang are told once each, the others counted"
        assert ("it was killed, or exited at once" in run.output()) == ("kill" in faults)
        assert f"no rollout within cluster.worker_timeout_s = {TIMEOUT_S} s" in run.output()


@pytest.mark.slow
def test_a_crash_loop_ends_the_run_and_says_why(tmp_path: Path, record_recovery: Callable[..., None]) -> None:
    with toy_run(
        tmp_path, "env.options={abort_chance: 1.0}", "cluster.max_worker_restarts=1", "actors.num_workers=1"
    ) as run:
        assert run.process.wait(120) == 1
        output = run.output()
        assert "crashed in native code: Aborted" in output
        assert "faulty_environments.py" in output, "the last words say where"
        assert "2 times in a row without progress; cluster.max_worker_restarts = 1" in output
        assert output.count("is replaced") == 1
        assert not lines(run.run_dir)
    record_recovery(
        "an environment that aborts its process every time",
        "the run ends with exit code 1, saying what crashed and where",
        None,
    )


@pytest.mark.slow
def test_the_task_is_learnt_though_workers_are_killed_every_few_seconds(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    assert_who_learns_nothing_does_not_solve_it(tmp_path / "control")
    with toy_run(tmp_path / "killed", *learning_settings(), "total_env_steps=1000000000") as run:
        wait_until(lambda: run.last_line().get("workers_running") == 2, run.process, run.log)
        generator, began, kills = random.Random(0), time.monotonic(), 0
        while time.monotonic() - began < 120:
            workers = actors_of(run.run_dir, "WorkerActor")
            if workers:
                generator.choice(workers).kill()
                kills += 1
            time.sleep(generator.uniform(2, 6))
        wait_until(lambda: run.last_line()["workers_running"] == 2, run.process, run.log)
        assert run.stop() == 0, run.output()
        assert run.last_line()["worker_restarts"] >= kills - 2 > 10
        assert run.last_line()["episode_return_extrinsic_mean"] > 0.9
        for line in lines(run.run_dir):
            assert line["env_steps"] == 16 * 20 * line["learner_updates"]
    record_recovery(
        f"a worker killed every 2 to 6 s for 2 minutes, {kills} in all", "the toy task is learnt, steps exact", None
    )


@pytest.mark.slow
def test_the_task_is_learnt_though_the_environment_crashes_and_stalls_at_random(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    assert_who_learns_nothing_does_not_solve_it(tmp_path / "control")
    faults = "env.options={length: 6, raise_chance: 0.002, stall_chance: 0.0001, abort_chance: 0.0001}"
    with toy_run(
        tmp_path / "faulty", *learning_settings(), faults, "cluster.worker_timeout_s=5", "total_env_steps=36000"
    ) as run:
        assert run.process.wait(280) == 0, run.output()
        last = run.last_line()
        assert last["environment_errors"] > 20
        assert last["worker_restarts"] > 0
        assert last["episode_return_extrinsic_mean"] > 0.9
        assert (last["env_steps"] - 16 * 20 * last["learner_updates"]) % 20 == 0
    record_recovery(
        "an environment that raises, aborts and stalls at random",
        "the toy task is learnt, only whole rollouts of environments are lost",
        None,
    )


def learning_settings() -> list[str]:
    """A corridor on ice short enough to be solved from its own reward."""
    return [
        "env.options={length: 6}",
        "actors.envs_per_worker=16",
        "actors.rollout_steps=20",
        "policy.hidden_size=64",
        "learner.learning_rate=0.002",
        "learner.gamma=0.95",
        "reward.extrinsic_coefficient=3.0",
        "logging.interval_env_steps=320",
    ]


def assert_who_learns_nothing_does_not_solve_it(folder: Path) -> None:
    """The control: the same run without faults and without learning."""
    with toy_run(folder, *learning_settings(), "learner.learning_rate=0", "total_env_steps=12800") as run:
        assert run.process.wait(120) == 0, run.output()
        assert run.last_line()["episode_return_extrinsic_mean"] < 0.3
