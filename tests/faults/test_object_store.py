"""An object store that is smaller than the rollouts in flight, under a learner that is slower than the workers: they
wait."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cluster.doctor.subject import Subject
from cluster.on_ray.placement import object_store_bytes, rollout_bytes, rollouts_at_once
from cluster.run.temporary import ray_directory
from configs.loading import load_config
from tests.run_processes import lines, processes_of, start_run, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.slow]
STORE = 80_000_000
SETTINGS = (
    "total_env_steps=1000000000",
    "env.id=tests.toy_environments:Painting-v0",
    "env.options={size: 64}",
    "env.captioner=info:text",
    "actors.num_workers=2",
    "actors.envs_per_worker=32",
    "actors.rollout_steps=32",
    "actors.rollouts_in_flight=4",
    "learner.rollouts_per_batch=1",
    "learner.torch_threads=1",
    "policy.core=none",
    "policy.hidden_size=32",
    "reward_model.name=none",
    "logging.interval_env_steps=4096",
    "logging.tensorboard=false",
    "checkpoint.interval_env_steps=0",
    "cluster.dashboard=false",
)
WATCHED_S = 60.0


def spilled_bytes(run_dir: Path) -> int:
    """What Ray has moved to disk at this moment."""
    total = 0
    for file in ray_directory(str(run_dir)).glob("session_20*/ray_spilled_objects_*/*"):  # not session_latest, a link
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total


def own_bytes(run_dir: Path) -> int:
    """Memory of the run's processes that they share with nobody, the store aside."""
    total = 0
    for process in processes_of(run_dir):
        try:
            total += process.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def test_a_full_object_store_holds_the_workers_back_and_memory_stays_flat(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "output.txt"
    settings = (*SETTINGS, f"cluster.object_store_bytes={STORE}")
    subject = Subject(load_config(preset="nethack_score", overrides=[f"run_dir={run_dir}", *settings]))
    one, most = rollout_bytes(subject.config, subject.spec), rollouts_at_once(subject.config)
    in_flight = subject.config.actors.num_workers * subject.config.actors.rollouts_in_flight
    assert in_flight * one > 1.2 * STORE, "else nothing is full"
    ample = load_config(preset="nethack_score", overrides=[f"run_dir={run_dir}", *SETTINGS])
    assert object_store_bytes(ample, subject.spec) > most * one, "what a run takes by itself is enough"
    process = start_run(run_dir, log, *settings)
    try:
        wait_until(lambda: len(lines(run_dir)) >= 3, process, log)
        samples: list[tuple[float, int, int]] = []
        started, first = time.monotonic(), lines(run_dir)[-1]
        while time.monotonic() - started < WATCHED_S:
            assert process.poll() is None, log.read_text()[-3000:]
            samples.append((time.monotonic() - started, spilled_bytes(run_dir), own_bytes(run_dir)))
            time.sleep(0.5)
        wait_until(lambda: lines(run_dir)[-1]["env_steps"] > first["env_steps"], process, log)
        seen = [line for line in lines(run_dir) if line["env_steps"] > first["env_steps"]]
        assert len(seen) >= 3, "the run goes on"
        assert max(spilled for _, spilled, _ in samples) > 0, "the store was full"
        # Files hold several rollouts and go when the last of them does.
        assert max(spilled for _, spilled, _ in samples) < 2 * most * one
        half = WATCHED_S / 2
        for number, what in ((1, "spilled"), (2, "memory")):
            early = statistics.median(sample[number] for sample in samples if sample[0] < half)
            late = statistics.median(sample[number] for sample in samples if sample[0] >= half)
            assert late < (1.5 if what == "spilled" else 1.1) * early, (what, early, late)
        assert statistics.mean(line["worker_idle_fraction"] for line in seen) > 0.2, "workers wait for the learner"
        assert max(line["rollouts_waiting"] for line in seen) <= in_flight
        assert all(line["worker_restarts"] == 0 for line in seen)
        assert all(line["policy_lag_max"] <= subject.config.learner.max_policy_lag for line in seen)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
    assert json.loads((run_dir / "summary.json").read_text())["env_steps"] > first["env_steps"]
    holds = (
        f"workers wait for the learner; memory is flat; what Ray moves to disk is bounded by the rollouts in flight"
        f" (at most {max(spilled for _, spilled, _ in samples) / 1e6:.0f} MB here)"
    )
    fault = (
        f"object store full: {STORE / 1e6:.0f} MB where rollouts of {in_flight * one / 1e6:.0f} MB are in flight, the"
        " learner slower than the workers"
    )
    record_recovery(fault, holds, None)
