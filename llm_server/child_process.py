"""`ChildServer`: a server program as a supervised child process on loopback, and what every supervised child shares.

Invariant: a server counts as up only while it answers its probe, a real question with a deadline: a server that hangs
may report itself healthy. One that exits, with any exit code, or fails its probe is killed with all its processes and
restarted after a bounded back-off. It never outlives this process (see `child_guard`).

    supervisor:  start ──▶ probe until it answers ──▶ up: probe when idle or doubted ──▶ end ──▶ back off ──▶ start
"""

import logging
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from configs.backoff import backoff_s
from configs.errors import named, one_line
from llm_server import child_guard

LOG = logging.getLogger(__name__)
POLL_S = 0.2
OUTPUT_LINES = 40
# An exception at the end of a traceback, or a program's complaint about its arguments, possibly after a log prefix.
ERROR_LINE = re.compile(
    r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?\s*((?:[\w.]*\.)?[A-Z]\w*(?:Error|Exception)(?:: .*)?|[\w.]+: error: .*)$"
)
GUARD_BUDGET_S = child_guard.GRACE_S + child_guard.TRACKERS_S + 2.0


def start_process_group(
    command: Sequence[str], output: int | IO[bytes], environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start `command` as the leader of its own session, which Ctrl-C does not reach; `output` takes stdout and stderr.

    Its standard input is a pipe that closes when this process ends in any way. `environment` is added to our own.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment),
        start_new_session=True,
    )


def end_process_group(child: "subprocess.Popen[bytes]", budget_s: float) -> None:
    """Wait `budget_s` for a child that was told to stop, kill it if it has not, and kill what is left of its group."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(budget_s)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def output_tail(lines: Iterable[str], max_lines: int = OUTPUT_LINES) -> str:
    """The last lines of a child's output, for a message."""
    return "\n".join(deque(lines, max_lines)) or "(it wrote nothing)"


class ProbeRefused(RuntimeError):
    """The server answers its probe with a permanent error; a retry cannot succeed."""


@dataclass(frozen=True, kw_only=True)
class ChildSettings:
    """The program to run and its time limits."""

    name: str
    """For messages."""
    command: Callable[[int], list[str]]
    """The program that listens on the given port of 127.0.0.1."""
    probe: Callable[[int, float], None]
    """Asks the server on the given port a question; raises unless a valid answer comes within the given seconds.
    ProbeRefused ends the start at once; any other exception means that the server is still loading."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's own."""
    start_timeout_s: float = 900.0
    """From start to the first answered probe; loading a large model takes minutes."""
    probe_timeout_s: float = 60.0
    probe_interval_s: float = 30.0
    """A server that has answered nothing for this long is probed."""
    first_backoff_s: float = 0.5
    max_backoff_s: float = 60.0
    stable_s: float = 60.0
    """Earlier failures no longer count once the server has been up for this long."""
    max_first_starts: int = 2
    """Children that may fail before the first has ever answered; then the configuration is assumed to be wrong."""


class ChildServer:
    """Starts its child at once and keeps one running until `close`; thread-safe."""

    def __init__(self, settings: ChildSettings) -> None:
        self.restarts = 0
        """Children started after the first."""
        self._settings = settings
        self._changed = threading.Condition()
        self._child: subprocess.Popen[bytes] | None = None
        self._port: int | None = None  # of the child that is up
        self._doubted = False
        self._was_up = False
        self._up_since = math.inf
        self._quiet_since = time.monotonic()
        self._reason = "it is starting"
        self._problem: str | None = None
        self._closed = False
        self._supervisor = threading.Thread(target=self._supervise, name=f"{settings.name}-supervisor", daemon=True)
        self._supervisor.start()

    @property
    def pid(self) -> int | None:
        """Of the guard that leads the running child's process group."""
        child = self._child
        return child.pid if child else None

    def wait_until_up(self, timeout_s: float) -> int:
        """Wait until a child is up; returns its port.

        Raises ValueError where no child ever answered and none is restarted, RuntimeError on `timeout_s` or `close`.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._closed:
                    raise RuntimeError(f"{self._settings.name} was closed")
                if self._problem is not None:
                    raise ValueError(self._problem)
                if self._port is not None and not self._doubted:
                    return self._port
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{self._settings.name} is down: {self._reason}; it is being started again")
                self._changed.wait(max(0.0, deadline - time.monotonic()) + 0.01)

    def answered(self) -> None:
        """Note that the server answered a request, which makes the next probe unnecessary."""
        self._quiet_since = time.monotonic()

    def doubt(self, port: int) -> None:
        """Probe the child on `port` after a failed request; no port is returned until the probe is answered."""
        with self._changed:
            if self._port == port:
                self._doubted = True
                self._changed.notify_all()

    def close(self) -> None:
        """End the child and all its processes within seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            child = self._child
        if child:
            _end(child)
        self._supervisor.join(GUARD_BUDGET_S)

    def _supervise(self) -> None:
        settings, failures = self._settings, 0
        while not self._closed:
            self._up_since = math.inf
            try:
                reason = self._run_one()
            except Exception as error:  # no memory to fork, no disk space for the folder: a failure like any other
                LOG.exception("%s cannot be run", settings.name)
                reason = f"cannot be run ({named(error, 200)})"
            with self._changed:
                self._port, self._child, self._reason = None, None, reason
                if self._closed:
                    return
                failures = 1 if time.monotonic() - self._up_since > settings.stable_s else failures + 1
                LOG.error("%s %s", settings.name, reason)
                if not self._was_up and failures >= settings.max_first_starts:
                    self._problem = f"{settings.name} {reason}"
                    self._changed.notify_all()
                    return
                pause_s = backoff_s(failures, settings.first_backoff_s, settings.max_backoff_s)
                if not self._changed.wait_for(lambda: self._closed, pause_s):
                    self.restarts += 1

    def _run_one(self) -> str:
        """Start a child and watch it to its end; why it ended or was ended."""
        settings, port, folder = self._settings, _free_port(), tempfile.mkdtemp(prefix="delphi-child-")
        guard = [sys.executable, "-P", child_guard.__file__, folder]
        try:
            child = start_process_group([*guard, *settings.command(port)], subprocess.PIPE, settings.environment)
            output = _Output(child, self._changed)
            with self._changed:
                self._child = child
            try:
                reason = self._watch(child, port, output)
            finally:
                with self._changed:
                    self._port = None
                _end(child)
                output.join()
            return reason or f"ended with exit code {child.returncode}: {output.complaint()}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # left behind by a guard that was killed

    def _watch(self, child: "subprocess.Popen[bytes]", port: int, output: "_Output") -> str:
        """Until the child is to be ended: why, or empty where it has ended by itself."""
        settings, is_up = self._settings, False
        start_deadline = time.monotonic() + settings.start_timeout_s
        while not self._closed:
            if output.has_ended or child.poll() is not None:
                break
            if not is_up or self._doubted or time.monotonic() - self._quiet_since > settings.probe_interval_s:
                timeout_s = settings.probe_timeout_s if is_up else max(1.0, start_deadline - time.monotonic())
                try:
                    settings.probe(port, timeout_s)
                except Exception as error:
                    if output.has_ended or child.poll() is not None:
                        break
                    if is_up:
                        return f"did not answer a probe question within {timeout_s:.0f} s ({named(error, 200)})"
                    if isinstance(error, ProbeRefused):
                        return f"refuses its probe question: {one_line(error)}"
                    if time.monotonic() > start_deadline:
                        within = f"within {settings.start_timeout_s:.0f} s of its start"
                        return f"answered nothing {within} ({named(error, 200)}): {output.complaint()}"
                else:
                    is_up = True
                    self._now_up(port, output)
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._doubted or output.has_ended, POLL_S)
        return "was closed" if self._closed else ""

    def _now_up(self, port: int, output: "_Output") -> None:
        with self._changed:
            if self._port is None:
                self._up_since = time.monotonic()
                LOG.info("%s is up on port %d", self._settings.name, port)
                output.forget()
            self._was_up, self._port, self._doubted = True, port, False
            self._quiet_since = time.monotonic()
            self._changed.notify_all()


class _Output:
    """Reads a child's output and keeps its last lines and its first error: later errors follow from that one."""

    def __init__(self, child: "subprocess.Popen[bytes]", changed: threading.Condition) -> None:
        self.has_ended = False
        self._child, self._changed = child, changed
        self._lines: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._first_error = ""
        self._thread = threading.Thread(target=self._read, name="child-output", daemon=True)
        self._thread.start()

    def complaint(self) -> str:
        """The line that best explains the failure; all the lines kept go to the log."""
        LOG.error("the last lines of its output were:\n%s", output_tail(self._lines))
        return self._first_error or next((line for line in reversed(self._lines) if line.strip()), "it wrote nothing")

    def forget(self) -> None:
        """Drop the first error: what was written before the server was up explains no later failure."""
        self._first_error = ""

    def join(self) -> None:
        """Wait until everything is read."""
        self._thread.join(2.0)

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip()[:1000]
                LOG.debug("%s", line)
                if self._first_error and self._lines[-1].endswith(self._first_error) and line.startswith(" "):
                    # Some programs first print only how many errors follow.
                    self._first_error += f" {line.strip()}"[:500]
                self._lines.append(line)
                if not self._first_error and (found := ERROR_LINE.match(line)):
                    self._first_error = found.group(1)
        with self._changed:
            self.has_ended = True
            self._changed.notify_all()


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End the guard, which ends the rest of its group."""
    if child.stdin and not child.stdin.closed:
        child.stdin.close()
    end_process_group(child, GUARD_BUDGET_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
