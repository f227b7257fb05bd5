"""One run directory, two runs: the second is refused in a line, whatever it calls the directory, and the first does not
notice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.run.temporary import temporary_directory
from tests.refusals import assert_refused
from tests.run_processes import ROOT, lines, start_run, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.slow]
SETTINGS = (
    "total_env_steps=1000000000",
    "env.id=tests.toy_environments:Corridor-v0",
    "logging.interval_env_steps=1000",
    "checkpoint.interval_env_steps=10000",
)


def try_second(run_dir: Path | str, *settings: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cluster.train", "--preset", "debug", f"run_dir={run_dir}", *SETTINGS, *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, env=environment)


def test_a_second_run_on_the_directory_is_refused_and_the_first_is_unharmed(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "output.txt"
    process = start_run(run_dir, log, *SETTINGS, preset="debug")
    again = None
    try:
        wait_until(lambda: (run_dir / "checkpoints" / "latest").exists(), process, log)
        (tmp_path / "link").symlink_to(run_dir)
        kept = {
            name: (run_dir / name).read_bytes() for name in ("config.json", "run_epoch", "provenance.json", "run.lock")
        }
        for name, settings in (
            (run_dir, ()),
            (
                run_dir,
                ("cluster.mode=connect", "cluster.address=127.0.0.1:1"),
            ),  # as a job would: refused before a cluster is asked
            (tmp_path / "link", ("cluster.mode=connect", "cluster.address=127.0.0.1:1")),
        ):
            second = try_second(name, *settings)
            assert_refused(second.returncode, second.stderr, "is in use by process", str(process.pid), "run_dir=")
        second = try_second("run", cwd=tmp_path)
        assert_refused(second.returncode, second.stderr, "is in use by process", str(process.pid))
        assert kept == {name: (run_dir / name).read_bytes() for name in kept}
        assert temporary_directory(str(run_dir)).exists(), "a refused run sweeps nothing"
        seen = len(lines(run_dir))
        wait_until(lambda: len(lines(run_dir)) > seen + 3, process, log)
        steps = [line["env_steps"] for line in lines(run_dir)]
        assert steps == sorted(set(steps))

        process.send_signal(signal.SIGKILL)  # the lock goes with the process
        process.wait()
        killed_at = time.monotonic()
        again = start_run(run_dir, log, *SETTINGS, preset="debug")
        last = len(lines(run_dir))
        wait_until(lambda: (run_dir / "run_epoch").read_text() == "2\n" and len(lines(run_dir)) > last, again, log)
        recovery_s = time.monotonic() - killed_at
        again.send_signal(signal.SIGTERM)
        assert again.wait(60) == 0, log.read_text()[-3000:]
        assert not json.loads((run_dir / "summary.json").read_text())["finished"]
    finally:
        for child in (process, *([again] if again else [])):
            child.kill()
            child.wait()
    holds = (
        "the second is refused in one line, in any mode and under any name of the directory, and the first does not"
        " notice; a lock dies with its process"
    )
    record_recovery("two runs on one directory, then kill -9 of the first", holds, recovery_s)
