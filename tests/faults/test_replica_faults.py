"""Annotation replicas of a real run: they divide the captions, and one that is killed comes back while the other goes
on."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run_processes import actors_of, lines, processes_of, start_run, wait_until

BATCH, IN_FLIGHT = 8, 2
SETTINGS = (
    "service.engine=scripted",
    "service.script_delay_s=0.004",
    "annotator.rubric=nethack_combat",  # judges captions whole, so that what the stores hold can be counted by caption
    f"annotator.batch_size={BATCH}",
    f"annotator.max_in_flight={IN_FLIGHT}",
    "cluster.service_replicas=2",
    "cluster.dashboard=false",
    "actors.envs_per_worker=8",
    "env.max_episode_steps=200",
    "logging.interval_env_steps=512",
    "logging.tensorboard=false",
)


def judged_in(store: Path) -> list[bytes]:
    """What a store has judgements of, in the order they were made."""
    with sqlite3.connect(store) as connection:
        return [item for (item,) in connection.execute("SELECT item FROM judgements ORDER BY number")]


def newest(run_dir: Path, name: str) -> float:
    """A figure of the newest metric line; 0 before there is one."""
    written = lines(run_dir)
    return (written[-1].get(name) or 0) if written else 0


def service_pids(run_dir: Path) -> set[int]:
    return {process.pid for process in processes_of(run_dir) if "llm_server.serve" in process.cmdline()}


@pytest.mark.faults
@pytest.mark.slow
def test_a_killed_replica_comes_back_and_no_answered_caption_is_asked_twice(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    run = start_run(run_dir, log, *SETTINGS, "total_env_steps=1e9", f"service.store={tmp_path}/judgements.sqlite")
    stores = [tmp_path / f"judgements-{index}.sqlite" for index in range(2)]
    try:
        wait_until(
            lambda: newest(run_dir, "annotation_replicas_up") == 2 and newest(run_dir, "annotations_total") >= 60,
            run,
            log,
        )
        replicas, services = actors_of(run_dir, "ReplicaActor"), service_pids(run_dir)
        assert len(replicas) == len(services) == 2
        victim = replicas[0]
        killed_at, answered = time.monotonic(), newest(run_dir, "annotations_total")
        os.kill(victim.pid, signal.SIGKILL)

        def is_back() -> bool:
            now = {process.pid for process in actors_of(run_dir, "ReplicaActor")}
            return len(now) == 2 and victim.pid not in now and newest(run_dir, "annotation_replicas_up") == 2

        wait_until(lambda: newest(run_dir, "annotation_replicas_up") < 2, run, log)  # it was seen
        wait_until(is_back, run, log)
        recovery_s = time.monotonic() - killed_at
        steps = newest(run_dir, "env_steps")
        wait_until(
            lambda: newest(run_dir, "annotations_total") > answered + 60 and newest(run_dir, "env_steps") > steps,
            run,
            log,
        )
        assert newest(run_dir, "annotator_up") == 1
        assert newest(run_dir, "service_restarts") == 1
        assert len(service_pids(run_dir)) == 2  # the dead actor's service went with it
        assert len(service_pids(run_dir) & services) == 1
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 0
    finally:
        if run.poll() is None:
            run.kill()
            run.wait()
    last = lines(run_dir)[-1]
    with sqlite3.connect(run_dir / "captions.sqlite") as connection:
        (labelled,) = connection.execute("SELECT COUNT(*) FROM captions WHERE probability IS NOT NULL").fetchone()
    assert last["annotations_total"] <= labelled  # no more answers than captions that have one: none was answered twice
    assert last["annotations_cached"] <= BATCH * IN_FLIGHT  # judged, but not handed over before the kill
    judged = [judged_in(store) for store in stores]
    assert all(len(items) >= 20 for items in judged), [len(items) for items in judged]  # each had its share
    both = set(judged[0]) & set(judged[1])
    assert len(both) <= BATCH * IN_FLIGHT  # only what was in flight at the kill went to the other one
    assert labelled <= len(set(judged[0]) | set(judged[1]))
    record_recovery(
        "kill -9 of one of two annotation replicas (its actor; its service dies with it)",
        "the other takes its captions, no answered caption is asked again, training goes on, the replica is back"
        " under its name",
        recovery_s,
    )
