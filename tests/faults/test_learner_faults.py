"""A learner that is killed is started again from the last complete checkpoint, within the run or by the same command; a
driver that is killed leaves nothing."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cluster.run.temporary import temporary_directory
from learner.checkpoint import load_latest
from tests.faults.toy_runs import ToyRun, is_alive, seconds_until, toy_run
from tests.run_processes import actors_of, lines, processes_of, wait_until

pytestmark = pytest.mark.faults
LONG = "total_env_steps=1000000000"


def learner_of(run: ToyRun) -> psutil.Process:
    (learner,) = wait_until(lambda: actors_of(run.run_dir, "LearnerActor"), run.process, run.log)
    return learner


def epoch_of(run: ToyRun) -> int:
    return run.last_line().get("run_epoch") or 0


def assert_continued(run: ToyRun, rollouts_per_batch: int = 1) -> None:
    """What came after the checkpoint has been superseded, and what is there goes on from it without a gap or an
    overlap."""
    steps = [line["env_steps"] for line in lines(run.run_dir)]
    assert steps == sorted(set(steps))
    epochs = [line["run_epoch"] for line in lines(run.run_dir)]
    assert epochs == sorted(epochs)
    assert any("resumed at" in line for line in (run.run_dir / "log.txt").read_text().splitlines())
    run.assert_steps_are_exact(rollouts_per_batch)


@pytest.mark.parametrize("deaths", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_learner_is_started_again_within_the_run(
    deaths: int, tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    few = ["actors.num_workers=1", "cluster.max_learner_restarts=1"]
    with toy_run(tmp_path, LONG, "checkpoint.interval_env_steps=1000", *few) as run:
        latest = run.run_dir / "checkpoints" / "latest"
        for epoch in range(1, deaths + 2):  # two are more than may come in a row: a checkpoint between is progress
            wait_until(lambda epoch=epoch: epoch_of(run) == epoch and latest.exists(), run.process, run.log)
            before = latest.read_text()
            wait_until(lambda before=before: latest.read_text() != before, run.process, run.log)
            if epoch <= deaths:
                steps = run.last_line()["env_steps"]
                began = time.monotonic()
                learner_of(run).kill()
                wait_until(lambda epoch=epoch: epoch_of(run) == epoch + 1, run.process, run.log)
                recovery_s = time.monotonic() - began
                wait_until(lambda steps=steps: run.last_line()["env_steps"] > steps, run.process, run.log)
        assert len(actors_of(run.run_dir, "WorkerActor")) == 1, "the dead learner's worker is gone"
        assert run.stop() == 0, run.output()
        assert_continued(run)
        assert run.output().count("the learner failed: it was killed") == deaths
        starts = json.loads((run.run_dir / "provenance.json").read_text())
        assert [start["run_epoch"] for start in starts] == [*range(1, deaths + 2)]
    record_recovery(
        "kill -9 of the learner",
        "started again within the run from the last checkpoint, steps exact",
        round(recovery_s, 1),
    )


@pytest.mark.slow
def test_a_stopped_learner_is_ended_and_started_again(tmp_path: Path, record_recovery: Callable[..., None]) -> None:
    limit_s = 10
    with toy_run(tmp_path, LONG, "checkpoint.interval_env_steps=1000", f"cluster.learner_timeout_s={limit_s}") as run:
        wait_until(lambda: (run.run_dir / "checkpoints" / "latest").exists(), run.process, run.log)
        learner = learner_of(run)
        learner.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        wait_until(lambda: epoch_of(run) == 2, run.process, run.log)
        recovery_s = time.monotonic() - began
        assert not is_alive(learner)
        assert recovery_s > limit_s
        assert f"cluster.learner_timeout_s = {limit_s} s" in run.output()
        assert run.stop() == 0, run.output()
        assert_continued(run)
    record_recovery(
        "SIGSTOP of the learner",
        "ended after cluster.learner_timeout_s (10 s here), started again from the last checkpoint",
        round(recovery_s, 1),
    )


TWO = ["cluster.num_learners=2", "learner.rollouts_per_batch=2", "checkpoint.interval_env_steps=1000"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "holds"),
    [
        (signal.SIGKILL, "both end and start again within the run from the last checkpoint, steps exact"),
        (signal.SIGSTOP, "noticed after cluster.learner_timeout_s (10 s here); both end and start again"),
    ],
    ids=["killed", "stopped"],
)
def test_the_loss_of_one_of_two_learners_is_that_of_the_learner(
    fault: signal.Signals, holds: str, tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    with toy_run(tmp_path, LONG, *TWO, "cluster.learner_timeout_s=10") as run:
        wait_until(lambda: (run.run_dir / "checkpoints" / "latest").exists(), run.process, run.log)
        first, (other,) = learner_of(run), actors_of(run.run_dir, "PeerActor")
        steps, began = run.last_line()["env_steps"], time.monotonic()
        other.send_signal(fault)
        wait_until(lambda: epoch_of(run) == 2, run.process, run.log)
        recovery_s = time.monotonic() - began
        assert not is_alive(first)
        assert not is_alive(other)
        wait_until(lambda: run.last_line()["env_steps"] > steps, run.process, run.log)
        assert len(actors_of(run.run_dir, "PeerActor")) == 1
        assert run.output().count("the learner failed: learner 2 of 2 (process ") == 1, run.output()
        assert run.stop() == 0, run.output()
        assert_continued(run, rollouts_per_batch=2)
    name = "kill -9" if fault == signal.SIGKILL else "SIGSTOP"
    record_recovery(f"{name} of one of two learners (cluster.num_learners)", holds, round(recovery_s, 1))


@pytest.mark.slow
def test_killed_while_it_writes_a_checkpoint_it_goes_on_from_the_last_complete_one(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    wide = ["policy.hidden_size=1024", "checkpoint.interval_env_steps=400", "checkpoint.keep=2"]
    with toy_run(tmp_path, LONG, *wide, "cluster.max_learner_restarts=0") as run:
        checkpoints = run.run_dir / "checkpoints"
        wait_until(lambda: (checkpoints / "latest").exists(), run.process, run.log)
        learner = learner_of(run)
        unfinished: list[Path] = []
        deadline = time.monotonic() + 120
        while not unfinished:
            assert time.monotonic() < deadline
            if next(checkpoints.glob(".saving-step_*"), None):
                learner.send_signal(signal.SIGSTOP)
                seconds_until(lambda: learner.status() == psutil.STATUS_STOPPED, 10)
                unfinished = list(checkpoints.glob(".saving-step_*"))
                if not unfinished:
                    learner.send_signal(signal.SIGCONT)
        complete = load_latest(checkpoints)
        assert complete is not None
        learner.kill()
        assert run.process.wait(60) == 1, "no restart is allowed, so the command fails"
        assert "cluster.max_learner_restarts = 0" in run.output()
        assert "the same command continues from the last checkpoint" in run.output()
        assert unfinished[0].exists()
        began = time.monotonic()
        run.start_again()
        wait_until(lambda: epoch_of(run) == 2, run.process, run.log)
        recovery_s = time.monotonic() - began
        assert run.stop() == 0, run.output()
        resumed_at = next(line for line in (run.run_dir / "log.txt").read_text().splitlines() if "resumed at" in line)
        assert f"resumed at {complete['loop']['env_steps']} environment steps" in resumed_at
        assert not unfinished[0].exists()
        assert_continued(run)
    record_recovery(
        "kill -9 of the learner while it writes a checkpoint",
        "the same command goes on from the last complete one",
        round(recovery_s, 1),
    )


@pytest.mark.slow
def test_a_learner_that_fails_before_it_has_learnt_anything_does_not_loop(tmp_path: Path) -> None:
    with toy_run(
        tmp_path, LONG, "learner.device=cuda:7" if not os.path.exists("/dev/nvidia0") else "learner.device=cuda:99"
    ) as run:
        assert run.process.wait(120) in (1, 2)
        assert "learner.device" in run.output()
        assert "started again" not in run.output()


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_the_same_command_resumes(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    with toy_run(tmp_path, LONG, "checkpoint.interval_env_steps=1000") as run:
        wait_until(lambda: (run.run_dir / "checkpoints" / "latest").exists(), run.process, run.log)
        orphans = [process for process in processes_of(run.run_dir) if process.pid != run.process.pid]
        assert len(orphans) > 5, "Ray's own processes, the learner and two workers"
        directory = temporary_directory(str(run.run_dir))
        run.process.kill()
        run.process.wait()
        seconds_s = seconds_until(lambda: not any(map(is_alive, orphans)) and not directory.exists(), 20)
        steps = json.loads((run.run_dir / "metrics.jsonl").read_text().splitlines()[-1])["env_steps"]
        run.start_again()
        wait_until(lambda: epoch_of(run) == 2 and run.last_line()["env_steps"] > steps, run.process, run.log)
        assert run.stop() == 0, run.output()
        assert_continued(run)
    record_recovery(
        "kill -9 of the driver (cluster.mode=local)",
        "nothing is left of it after a moment, and the same command resumes",
        round(seconds_s, 1),
    )


@pytest.mark.slow
def test_the_same_command_right_after_the_kill_is_not_harmed_by_what_is_ended(tmp_path: Path) -> None:
    with toy_run(tmp_path, LONG, "checkpoint.interval_env_steps=1000") as run:
        wait_until(lambda: (run.run_dir / "checkpoints" / "latest").exists(), run.process, run.log)
        old = [process for process in processes_of(run.run_dir) if process.pid != run.process.pid]
        run.process.kill()
        run.process.wait()
        run.start_again()
        wait_until(lambda: epoch_of(run) == 2, run.process, run.log)
        assert not any(map(is_alive, old))
        time.sleep(4)  # as long as the killed one's watch would have waited
        assert run.process.poll() is None
        assert run.stop() == 0, run.output()
