"""A whole training run, as a user starts it, and what it does in a window of time after its warm-up.

The run is `python -m cluster.train` in a process of its own with a temporary run directory. Its own metric lines say
how many steps were consumed when: frames/s is the steps between two lines over the time between them.

Invariant: the window opens `warmup_s` after the first metric line, hence after the first updates and what they
compiled; nothing before it counts. When `measure` returns or raises, nothing is left of the run.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from configs.loading import load_config
from configs.schema import RunConfig
from tests.benchmarks.marked_processes import Marked

START_LIMIT_S = 300.0
"""For the first metric line, compilation included."""
STALL_LIMIT_S = 60.0
"""Without a further line in the window, beyond its length."""
STOP_LIMIT_S = 60.0
POLL_S = 0.5
ROLES = {"ray::LearnerActor": "learner", "ray::WorkerActor": "worker", "ray::AnnotatorActor": "annotator"}
WORKING_POINT = (
    "env.id=NetHackScore-v0",
    "actors.num_workers=2",
    "actors.envs_per_worker=64",
    "actors.rollout_steps=32",
    "learner.rollouts_per_batch=2",
    "actors.torch_threads=1",
    "learner.torch_threads=1",
    "learner.epochs=1",
    "learner.minibatches=1",
    "policy.core_skip=false",
)
"""The reference network (the policy's defaults without the skip) with batches of 2 x 64 x 32 = 4096 frames, each passed
once, as the peer does."""
EVERY_RUN = (
    "cluster.mode=local",
    "total_env_steps=1000000000000",
    "logging.console=plain",
    "service.engine=scripted",
    "service.script=kill|destroy|level|stairs=0.9",
    "service.store=memory",
)
"""Judgements cost next to nothing, and no store of an earlier run answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a run did between two of its metric lines."""

    frames_per_s: float
    seconds: float
    cpu_us_per_frame: Mapping[str, float]
    """CPU time per frame of a role's processes that were alive when the window closed: learner, worker, annotator,
    service, driver, ray (its own processes)."""
    last_line: Mapping[str, object]
    """The metric line that closed it."""


def configuration(overrides: Sequence[str]) -> RunConfig:
    """The configuration that `measure` runs; ValueError for keys and values that are wrong."""
    return load_config(overrides=[*EVERY_RUN, *overrides])


def measure(
    overrides: Sequence[str], *, seconds: float, warmup_s: float, in_window: Callable[[Marked], None] = lambda run: None
) -> Window:
    """Start a run, let it warm up, watch it for `seconds`, stop it. `in_window` is called every half second while the
    window is open.

    RuntimeError, with what the run wrote last, where it ends by itself or stands still.
    """
    with Marked() as run:
        output = run.folder / "output.txt"
        command = [sys.executable, "-m", "cluster.train", *EVERY_RUN, *overrides, f"run_dir={run.run_dir}"]
        process = run.start(command, output)
        lines = _Lines(run.run_dir / "metrics.jsonl", process, output)
        first = lines.wait(0.0, START_LIMIT_S)
        opened = lines.wait(first["time_s"] + warmup_s, warmup_s + STALL_LIMIT_S)
        before = {process: seconds for process, _, seconds in _cpu_times(run)}
        closed = lines.wait(opened["time_s"] + seconds, seconds + STALL_LIMIT_S, lambda: in_window(run))
        spent = cpu_seconds(run, before=before)
        _stop(process, output)
    frames, took = closed["env_steps"] - opened["env_steps"], closed["time_s"] - opened["time_s"]
    return Window(
        frames_per_s=frames / took,
        seconds=took,
        cpu_us_per_frame={role: 1e6 * total / frames for role, total in spent.items()},
        last_line=closed,
    )


class _Lines:
    """The metric lines of a run in progress."""

    def __init__(self, path: Path, process: "subprocess.Popen[bytes]", output: Path) -> None:
        self._path, self._process, self._output, self._read = path, process, output, 0

    def wait(self, time_s: float, limit_s: float, meanwhile: Callable[[], None] = lambda: None) -> dict[str, float]:
        """The first line not yet read that was written at `time_s` of the run's clock or later."""
        deadline = time.monotonic() + limit_s
        while True:
            text = self._path.read_text() if self._path.exists() else ""
            lines = text[: text.rfind("\n") + 1].splitlines()  # the last may be half written
            for number, line in enumerate(lines[self._read :], self._read + 1):
                values = json.loads(line)
                if values["time_s"] >= time_s:
                    self._read = number
                    return values
            self._read = len(lines)
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"the run ended by itself with exit code {self._process.returncode}:\n{_tail(self._output)}"
                )
            if time.monotonic() > deadline:
                raise RuntimeError(f"the run wrote no metric line for {limit_s:.0f} s:\n{_tail(self._output)}")
            meanwhile()
            time.sleep(POLL_S)


def cpu_seconds(run: Marked, before: Mapping[psutil.Process, float]) -> dict[str, float]:
    """CPU time by role of the run's living processes since `before`, which has what each had spent then."""
    totals: dict[str, float] = {}
    for process, role, seconds in _cpu_times(run):
        totals[role] = totals.get(role, 0.0) + seconds - before.get(process, 0.0)
    return totals


def _cpu_times(run: Marked) -> Iterator[tuple[psutil.Process, str, float]]:
    for process in run.processes():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            times = process.cpu_times()
            yield process, role_of(process.cmdline()), times.user + times.system


def role_of(command: Sequence[str]) -> str:
    """Which part of a run a process is, by its command line; whatever belongs to no part is Ray's own."""
    if "llm_server.serve" in command:
        return "service"
    if "cluster.train" in command:
        return "driver"
    return next((role for name, role in ROLES.items() if command and command[0].startswith(name)), "ray")


def service_of(run: Marked) -> psutil.Process | None:
    """The run's annotation service."""
    for process in run.processes():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if role_of(process.cmdline()) == "service":
                return process
    return None


def _stop(process: "subprocess.Popen[bytes]", output: Path) -> None:
    process.send_signal(signal.SIGINT)
    try:
        code = process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the run did not stop within {STOP_LIMIT_S:.0f} s of SIGINT:\n{_tail(output)}") from None
    if code:
        raise RuntimeError(f"the run failed when it was stopped, exit code {code}:\n{_tail(output)}")


def _tail(output: Path) -> str:
    return output.read_text(errors="replace")[-2000:].strip() or "(it wrote nothing)"
