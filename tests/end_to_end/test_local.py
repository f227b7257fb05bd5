"""The main job in small: Ray on this machine, real NetHack, SmolLM2 behind gRPC; what dies comes back, and Ctrl-C leaves nothing."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cluster.temporary import temporary_directory

ROOT = Path(__file__).parents[2]
LIMIT_S = 120.0


def lines(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_until(condition: Callable[[], Any], process: subprocess.Popen, log: Path) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while True:
        value = condition()
        if value:
            return value
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(log.read_text()[-4000:])
        time.sleep(0.2)


def processes_of(run_dir: Path) -> list[psutil.Process]:
    """Everything that belongs to the run: named after its directory, or with its temporary directory in the environment."""
    marks = (str(run_dir), str(temporary_directory(str(run_dir))))
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.environ().get("TMPDIR", "")]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(mark in word for mark in marks for word in words):
            found.append(process)
    return found


def service_of(run_dir: Path) -> psutil.Process | None:
    return next((p for p in processes_of(run_dir) if "llm_server.serve" in p.cmdline()), None)


def actor_of(run_dir: Path, name: str) -> psutil.Process:
    return next(p for p in processes_of(run_dir) if p.cmdline()[0].startswith(f"ray::{name}"))


def test_the_main_job_survives_what_dies_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "output.txt"
    command = [sys.executable, "-m", "cluster.train", "--preset", "nethack_score", f"run_dir={run_dir}", "total_env_steps=1000000000"]
    command += ["actors.envs_per_worker=8", "logging.interval_env_steps=1000", f"service.store={tmp_path / 'judgements.sqlite'}"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: any(line["annotator_up"] == 1 and line["annotations_total"] >= 32 for line in lines(run_dir)), process, log)
        service = service_of(run_dir)
        assert service is not None
        assert service.nice() > actor_of(run_dir, "WorkerActor").nice()
        killed_at = lines(run_dir)[-1]
        service.kill()
        wait_until(lambda: any(x["annotator_up"] == 0 and x["env_steps"] > killed_at["env_steps"] for x in lines(run_dir)), process, log)
        recovered = wait_until(
            lambda: [x for x in lines(run_dir) if (x["service_restarts"] or 0) >= 1 and x["annotator_up"] == 1], process, log
        )[0]
        wait_until(lambda: lines(run_dir)[-1]["annotations_total"] > recovered["annotations_total"], process, log)
        actor_of(run_dir, "WorkerActor").kill()
        replaced = wait_until(lambda: [x for x in lines(run_dir) if x["worker_restarts"] == 1], process, log)[0]
        actor_of(run_dir, "AnnotatorActor").kill()
        wait_until(lambda: [x for x in lines(run_dir) if x["env_steps"] > replaced["env_steps"] and x["annotator_up"] == 0], process, log)
        last = lines(run_dir)[-1]
        wait_until(lambda: [x for x in lines(run_dir) if x["env_steps"] > last["env_steps"] and x["annotator_up"] == 1], process, log)
        assert all(a["env_steps"] < b["env_steps"] for a, b in zip(lines(run_dir), lines(run_dir)[1:], strict=False))
        process.send_signal(signal.SIGINT)
        process.wait(20)
        alive = psutil.wait_procs(processes_of(run_dir), timeout=10)[1]
        assert not alive
    finally:
        for leftover in processes_of(run_dir):
            leftover.kill()
    assert process.returncode == 0, log.read_text()[-4000:]
    assert not temporary_directory(str(run_dir)).exists()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["intrinsic_unknown_fraction"] < 0.2
    with sqlite3.connect(run_dir / "captions.sqlite") as archive:
        (judged,) = archive.execute("SELECT count(*) FROM captions WHERE probability IS NOT NULL").fetchone()
        statuses = {status for (status,) in archive.execute("SELECT DISTINCT status FROM captions")}
    archive.close()
    assert judged >= summary["annotations_total"] - summary["annotations_unparsed"], "answers that came are kept"
    assert "ASKED" not in statuses, "what was asked when the service died is pending again"


def test_sigterm_writes_a_checkpoint_too(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "output.txt"
    command = [sys.executable, "-m", "cluster.train", "--preset", "nethack_score", f"run_dir={run_dir}", "total_env_steps=1000000000"]
    command += ["actors.envs_per_worker=4", "logging.interval_env_steps=500", "reward_model.name=counts"]
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}  # of a cluster that a local run must not look for
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_until(lambda: lines(run_dir), process, log)
        process.terminate()
        process.wait(20)
    finally:
        for leftover in processes_of(run_dir):
            leftover.kill()
    assert process.returncode == 0, log.read_text()[-4000:]
    assert list((run_dir / "checkpoints").glob("step_*"))
    assert not json.loads((run_dir / "summary.json").read_text())["finished"]
