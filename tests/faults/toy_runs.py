"""Small runs on Ray in which faults are injected, as processes of their own.

Invariant: what is checked of a run is read from its files and from the machine's processes, never from inside.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.run_processes import end_processes, lines, start_run

FAULTY = "env.id=tests.faults.faulty_environments:Faulty-v0"
ENVS, STEPS = 4, 10
SETTINGS = (
    FAULTY,
    "cluster.mode=local",
    "cluster.dashboard=false",
    "cluster.object_store_bytes=200000000",
    "env.max_episode_steps=40",
    f"actors.envs_per_worker={ENVS}",
    f"actors.rollout_steps={STEPS}",
    "actors.num_workers=2",
    "actors.precision=fp32",
    "learner.precision=fp32",
    "learner.device=cpu",
    "learner.epochs=1",
    "learner.minibatches=1",
    "policy.core=none",
    "policy.hidden_size=16",
    "reward_model.name=none",
    "logging.tensorboard=false",
    "logging.console=plain",
    "logging.interval_env_steps=1",
)


class ToyRun:
    """A run that a test started."""

    def __init__(self, folder: Path, *settings: str, env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.run_dir, self.log = folder / "run", folder / "output.txt"
        self.settings = settings
        self._environment = {**(env or os.environ), "OMP_NUM_THREADS": "1"}
        self.process = self._start()

    def _start(self) -> subprocess.Popen:
        return start_run(self.run_dir, self.log, *SETTINGS, *self.settings, preset="debug", env=self._environment)

    def start_again(self) -> None:
        """The same command."""
        self.process = self._start()

    def output(self) -> str:
        """What the user has been shown."""
        return self.log.read_text()

    def last_line(self) -> dict[str, Any]:
        """The newest metric line; empty before there is one."""
        found = lines(self.run_dir)
        return found[-1] if found else {}

    def stop(self) -> int:
        """Ask it to end, as Ctrl-C does; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def assert_steps_are_exact(self, rollouts_per_batch: int = 1) -> None:
        """Every step that was counted is of a whole rollout that one update consumed."""
        for line in lines(self.run_dir):
            assert line["env_steps"] == ENVS * STEPS * rollouts_per_batch * line["learner_updates"], line


@contextmanager
def toy_run(folder: Path, *settings: str, env: Mapping[str, str] | None = None) -> Iterator[ToyRun]:
    """A run, of which nothing is left afterwards."""
    run = ToyRun(folder, *settings, env=env)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
        end_processes(run.run_dir)


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs or is stopped; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def seconds_until(condition: Any, limit_s: float) -> float:
    """Seconds until `condition` holds; AssertionError where it takes longer than `limit_s`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, f"not within {limit_s} s"
        time.sleep(0.02)
    return time.monotonic() - began
