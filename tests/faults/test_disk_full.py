"""A disk that fills up under a real run: a small tmpfs of its own, in a user and mount namespace that the test makes.

The test reaches into the namespace through /proc/PID/root; where the kernel allows no such namespace there is no full
disk to test with, and the test is skipped.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from learner.checkpoint import load_latest
from tests.run_processes import ROOT, wait_until

pytestmark = pytest.mark.faults
INTERVAL = 8 * 16 * 10
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
MOUNT = 'mount -t tmpfs -o size=40m tmpfs "$0" && exec "$@"'


def can_mount() -> bool:
    try:
        return subprocess.run([*UNSHARE, "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode == 0
    except OSError:
        return False


needs_namespace = pytest.mark.skipif(
    not can_mount(), reason="no user and mount namespaces for this user: no small file system to fill"
)


class Disk:
    """The file system of a run in its namespace, seen from outside."""

    def __init__(self, process: subprocess.Popen, mount: Path) -> None:
        self.root = Path(f"/proc/{process.pid}/root{mount}")
        self.run = self.root / "run"

    def fill(self) -> None:
        """To the last byte."""
        descriptor = os.open(self.root / "filler", os.O_WRONLY | os.O_CREAT)
        try:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while os.write(descriptor, b"x" * size):
                        pass
                except OSError:
                    pass
        finally:
            os.close(descriptor)

    def make_room(self) -> None:
        (self.root / "filler").unlink()

    def latest(self) -> str:
        file = self.run / "checkpoints" / "latest"
        return file.read_text() if file.exists() else ""


def start(mount: Path, log: Path) -> subprocess.Popen:
    settings = [
        f"run_dir={mount / 'run'}",
        "total_env_steps=1000000000",
        "env.id=tests.toy_environments:Corridor-v0",
        "env.max_episode_steps=30",
        "service.script='advance=0.9'",
        "policy.core_size=16",
        "policy.hidden_size=16",
        "learner.epochs=1",
        "learner.minibatches=1",
        f"checkpoint.interval_env_steps={INTERVAL}",
        "checkpoint.keep=2",
        f"logging.interval_env_steps={INTERVAL // 2}",
        "logging.console=plain",
        "logging.console_interval_s=0.5",
    ]
    command = [
        *UNSHARE,
        "sh",
        "-c",
        MOUNT,
        str(mount),
        sys.executable,
        "-m",
        "cluster.train",
        "--preset",
        "debug",
        *settings,
    ]
    with log.open("a") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def steps_shown(log: Path) -> int:
    """By the newest progress line."""
    found = re.findall(r"^([\d,]+)/1,000,000,000 steps", log.read_text(), re.MULTILINE)
    return int(found[-1].replace(",", "")) if found else 0


@needs_namespace
def test_a_full_disk_costs_no_progress_and_never_the_last_good_checkpoint(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    mount, log, copy = tmp_path / "disk", tmp_path / "output.txt", tmp_path / "copy"
    mount.mkdir()
    process = start(mount, log)
    disk = Disk(process, mount)
    try:
        wait_until(disk.latest, process, log)
        disk.fill()
        wait_until(lambda: "training goes on, but: checkpoint" in log.read_text(), process, log)
        last_good, steps = disk.latest(), steps_shown(log)
        wait_until(lambda: log.read_text().count("training goes on, but: checkpoint") >= 3, process, log)
        assert steps_shown(log) > steps
        assert disk.latest() == last_good
        shutil.copytree(disk.run / "checkpoints", copy)
        state = load_latest(copy)
        assert state is not None
        assert f"step_{state['loop']['env_steps']}" == last_good, "whole, and the one that `latest` names"
        assert not list(copy.glob(".saving-*/*")), "no part of a failed one is left to take room"

        room_at = time.monotonic()
        disk.make_room()
        wait_until(lambda: disk.latest() != last_good, process, log)
        recovery_s = time.monotonic() - room_at
        wait_until(lambda: "the disk takes what is written again" in log.read_text(), process, log)
        after = int(disk.latest().removeprefix("step_"))
        wait_until(lambda: int(disk.latest().removeprefix("step_")) > after, process, log)
        lines = [json.loads(line) for line in (disk.run / "metrics.jsonl").read_text().splitlines()]
        assert [line["env_steps"] for line in lines] == [INTERVAL // 2 * n for n in range(1, len(lines) + 1)], (
            "no metric line is lost"
        )
        assert lines[-1]["checkpoints_failed"] >= 2
        assert lines[-1]["checkpoint_age_s"] < lines[-1]["time_s"]
        assert log.read_text().count("Traceback") <= 1, "at most one, of TensorBoard's own thread"

        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
        process.wait()
    holds = (
        "the run goes on without a checkpoint, says so, and writes the next one when there is room; the last good one"
        " stays whole"
    )
    record_recovery("disk full during checkpoints, metrics and logs; later room again", holds, recovery_s)


@needs_namespace
def test_a_disk_that_is_still_full_at_the_end_is_an_exit_code_and_the_last_good_checkpoint_stays(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    mount, log, copy = tmp_path / "disk", tmp_path / "output.txt", tmp_path / "copy"
    mount.mkdir()
    process = start(mount, log)
    disk = Disk(process, mount)
    holder = None
    try:
        wait_until(disk.latest, process, log)
        # A second process in the namespace, so that the file system outlives the run.
        holder = subprocess.Popen(
            ["nsenter", "-U", "-m", "--preserve-credentials", "-t", str(process.pid), "sleep", "1000"]
        )
        survivor = Path(f"/proc/{holder.pid}/root{mount}/run/checkpoints")
        wait_until(lambda: (survivor / "latest").exists(), process, log)
        disk.fill()
        wait_until(lambda: "training goes on, but: checkpoint" in log.read_text(), process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1, log.read_text()[-3000:]
        output = log.read_text()
        assert "could not be written" in output.split("delphi train: the run failed:")[1]
        assert "Earlier checkpoints are intact" in output.split("delphi train: the run failed:")[1]
        last_good = (survivor / "latest").read_text()
        shutil.copytree(survivor, copy)
        state = load_latest(copy)
        assert state is not None
        assert f"step_{state['loop']['env_steps']}" == last_good
    finally:
        for child in (process, *([holder] if holder else [])):
            child.kill()
            child.wait()
    holds = (
        "exit code 1 and one line that says why; the last good checkpoint is whole, the same command continues from it"
    )
    record_recovery("disk full when the run ends", holds, None)
