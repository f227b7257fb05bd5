"""A run as a process of its own, watched from outside: its metric lines, and the processes that belong to it."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from cluster.run.temporary import temporary_directory

ROOT = Path(__file__).parents[1]
LIMIT_S = 240.0


def start_run(
    run_dir: Path, log: Path, *settings: str, preset: str = "nethack_score", env: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """`delphi train` in the background, in a session of its own, its output in `log`; without an evaluation at its
    end."""
    command = [
        sys.executable,
        "-m",
        "cluster.train",
        "--preset",
        preset,
        f"run_dir={run_dir}",
        "evaluation.at_end=false",
        *settings,
    ]
    with log.open("a") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The metric lines so far."""
    file = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_until(condition: Callable[[], Any], process: subprocess.Popen, log: Path, limit_s: float = LIMIT_S) -> Any:
    """The first true value of `condition`; AssertionError with the run's output where it ends or the time is up
    before."""
    deadline = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(log.read_text()[-4000:])
        time.sleep(0.2)


def processes_of(run_dir: Path) -> list[psutil.Process]:
    """Everything that belongs to the run: named after its directory, or with its temporary directory in the
    environment."""
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


def end_processes(run_dir: Path, limit_s: float = 20.0) -> None:
    """Kill what belongs to the run, and what that may still have started, until nothing is left: the next test shall
    find none of it."""
    deadline = time.monotonic() + limit_s
    while found := processes_of(run_dir):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended with another
                process.kill()
        time.sleep(0.05)  # and not psutil's wait, which would take the exit status from the `Popen` that started one
        assert time.monotonic() < deadline, f"{found} cannot be ended"


def service_of(run_dir: Path) -> psutil.Process | None:
    """The annotation service that the run started."""
    return next((p for p in processes_of(run_dir) if "llm_server.serve" in p.cmdline()), None)


def actors_of(run_dir: Path, name: str) -> list[psutil.Process]:
    """The run's Ray actors of a class."""
    return [p for p in processes_of(run_dir) if p.cmdline() and p.cmdline()[0].startswith(f"ray::{name}")]
