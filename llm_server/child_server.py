"""`ChildServer`: a server program on a port of loopback as a supervised child process.

Invariant: a server counts as up only while it answers its probe, a real question with a deadline: a server that hangs
may report itself healthy. One that fails its probe is ended by its guard (see `child_guard`) with all its processes.
"""

import logging
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from configs.errors import named, one_line
from llm_server import child_guard
from llm_server.child_process import Child, ChildProcess, ChildSettings, ChildState, start_process_group

LOG = logging.getLogger(__name__)
POLL_S = 0.2
OUTPUT_LINES = 40
# An exception at the end of a traceback, or a program's complaint about its arguments, possibly after a log prefix.
ERROR_LINE = re.compile(
    r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?\s*((?:[\w.]*\.)?[A-Z]\w*(?:Error|Exception)(?:: .*)?|[\w.]+: error: .*)$"
)


class ProbeRefused(RuntimeError):
    """The server answers its probe with a permanent error; a retry cannot succeed."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings(ChildSettings):
    """The server program to run, and its time limits."""

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


class ChildServer(ChildProcess):
    """A server under a guard, polled and probed by a thread of its own from its construction to `close`."""

    _settings: ServerSettings
    _output: "_Output"
    """Of the latest child."""

    def __init__(self, settings: ServerSettings) -> None:
        super().__init__(settings)
        self._port = 0  # of the latest child
        self._folder: str | None = None  # its temporary files
        self._quiet_since = time.monotonic()
        self._supervisor = threading.Thread(target=self._supervise, name=f"{settings.name}-supervisor", daemon=True)
        self._supervisor.start()

    def wait_until_up(self, timeout_s: float) -> int:
        """Wait until a child is up; returns its port.

        Raises ValueError where no child ever answered and none is restarted, RuntimeError on `timeout_s` or `close`.
        """
        with self._changed:
            settled = (ChildState.UP, ChildState.GAVE_UP, ChildState.CLOSED)
            self._changed.wait_for(lambda: self.state in settled, timeout_s)
            if self.state is ChildState.UP:
                return self._port
            if self.problem is not None:
                raise ValueError(self.problem)
            if self.state is ChildState.CLOSED:
                raise RuntimeError(f"{self._settings.name} was closed")
            raise RuntimeError(f"{self._settings.name} is down: {self._reason}; it is being started again")

    def answered(self) -> None:
        """Note that the server answered a request, which makes the next probe unnecessary."""
        self._quiet_since = time.monotonic()

    def doubt(self, port: int) -> None:
        """Probe the child on `port` after a failed request; no port is returned until the probe is answered."""
        with self._changed:
            if self.state is ChildState.UP and self._port == port:
                self.state = ChildState.DOUBTED
                self._changed.notify_all()

    def close(self) -> None:
        """End the child and all its processes within seconds, and the thread."""
        super().close()
        self._supervisor.join(self._settings.end_budget_s)

    def _supervise(self) -> None:
        while self.poll() not in (ChildState.GAVE_UP, ChildState.CLOSED):
            is_quiet = time.monotonic() - self._quiet_since > self._settings.probe_interval_s
            if self.state in (ChildState.STARTING, ChildState.DOUBTED) or (self.state is ChildState.UP and is_quiet):
                self._probe()
            with self._changed:
                self._changed.wait_for(lambda: self.state in (ChildState.DOUBTED, ChildState.CLOSED), POLL_S)

    def _probe(self) -> None:
        settings, is_starting = self._settings, self.state is ChildState.STARTING
        start_deadline = self._started_at + settings.start_timeout_s
        timeout_s = max(1.0, start_deadline - time.monotonic()) if is_starting else settings.probe_timeout_s
        try:
            settings.probe(self._port, timeout_s)
        except Exception as error:
            if not is_starting:
                reason = f"did not answer a probe question within {timeout_s:.0f} s ({named(error, 200)})"
            elif isinstance(error, ProbeRefused):
                reason = f"refuses its probe question: {one_line(error)}"
            elif time.monotonic() > start_deadline:
                within = f"within {settings.start_timeout_s:.0f} s of its start"
                reason = f"answered nothing {within} ({named(error, 200)}){self._last_words()}"
            else:
                return
            self._condemn(reason, settings.end_budget_s)
        else:
            if is_starting:
                LOG.info("%s is up on port %d", settings.name, self._port)
                self._output.forget()
            self.answered()
            self._now_up()

    def _start(self) -> Child:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._folder = tempfile.mkdtemp(prefix="delphi-child-")
        guard = [sys.executable, "-P", child_guard.__file__, self._folder]
        command = [*guard, *self._settings.command(self._port)]
        child = start_process_group(command, subprocess.PIPE, self._settings.environment)
        try:
            self._output = _Output(child)
        except BaseException:  # no thread can be started; the guard ends with its standard input
            assert child.stdin
            child.stdin.close()
            raise
        return child

    def _last_words(self) -> str:
        return f": {self._output.complaint()}"

    def _release(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)  # left behind by a guard that was killed


class _Output:
    """Reads a child's output and keeps its last lines and its first error: later errors follow from that one."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._lines: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._first_error = ""
        self._thread = threading.Thread(target=self._read, name="child-output", daemon=True)
        self._thread.start()

    def complaint(self) -> str:
        """The line that best explains the failure; all the lines kept go to the log."""
        if self._child.poll() is not None:
            self._thread.join(2.0)  # until everything is read
        lines = list(self._lines)  # one that runs may still write
        LOG.error("the last lines of its output were:\n%s", "\n".join(lines) or "(it wrote nothing)")
        return self._first_error or next((line for line in reversed(lines) if line.strip()), "it wrote nothing")

    def forget(self) -> None:
        """Drop the first error: what was written before the server was up explains no later failure."""
        self._first_error = ""

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
