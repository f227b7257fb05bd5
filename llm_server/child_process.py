"""`ChildProcess`: a program as a child process that is started, watched, ended and replaced.

Invariant: at most one child is alive. One that exits, with any exit code, or must not go on is ended with all its
processes and replaced after a bounded back-off. It must end when its standard input does, so that it never outlives
this process.

    BACKING_OFF ──its time has come──▶ STARTING ──answers──▶ UP ──a request failed──▶ DOUBTED ──answers──▶ UP
    STARTING, UP, DOUBTED ──must not go on──▶ ENDING;  the four ──exit──▶ BACKING_OFF or GAVE_UP;  any ──close──▶ CLOSED
"""

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import IO, TypeAlias

from configs.backoff import backoff_s
from configs.errors import named
from llm_server import child_guard

LOG = logging.getLogger(__name__)
Child: TypeAlias = "subprocess.Popen[bytes]"


class ChildState(Enum):
    """What a supervised child is doing."""

    BACKING_OFF = "no child runs, and the next one is started when its time has come"
    STARTING = "a child runs and has not answered yet"
    UP = "the child answers"
    DOUBTED = "the child answered before a request failed"
    ENDING = "the child was told to end and is killed when its time has come"
    GAVE_UP = "no child is started any more"
    CLOSED = "closed by its owner"


RUNNING = (ChildState.STARTING, ChildState.UP, ChildState.DOUBTED)


@dataclass(frozen=True, kw_only=True)
class ChildSettings:
    """When a child is restarted, and when it is given up."""

    name: str
    """For messages."""
    first_backoff_s: float = 0.5
    max_backoff_s: float = 60.0
    stable_s: float = 60.0
    """Earlier failures no longer count once a child has been up for this long."""
    max_failures: int = 2
    """In a row; then the configuration is assumed to be wrong."""
    is_proven_by_first: bool = True
    """Whether the configuration counts as right, and nothing is given up, once a child has been up."""
    final_exit_codes: tuple[int, ...] = ()
    """A child that exits with one of these codes is given up at once."""
    advice: str = ""
    """Ends the message of a child that is given up."""
    end_budget_s: float = child_guard.GRACE_S + child_guard.TRACKERS_S + 2.0
    """From SIGTERM to SIGKILL; the default is enough for a guard (see `child_guard`)."""


class ChildProcess(ABC):
    """Keeps a child running as long as it is polled, until `close`; thread-safe.

    A subclass starts the child (`_start`), says that it is up (`_now_up`) and that it must not go on (`_condemn`).
    """

    def __init__(self, settings: ChildSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.state = ChildState.BACKING_OFF
        self._settings, self._clock = settings, clock
        self._changed, self._closing = threading.Condition(), threading.Lock()
        self._child: Child | None = None
        self._reason = "it is starting"  # why the last child failed, or the present one is ending
        self._failures = self._num_starts = 0
        self._started_at = self._due_at = clock()  # the latter: of the next start, or of the kill
        self._up_since = math.inf
        self._was_up = False

    @property
    def pid(self) -> int | None:
        """Of the child, which leads its process group, until its exit is noticed."""
        return child.pid if (child := self._child) else None

    @property
    def restarts(self) -> int:
        """Children started after the first."""
        return max(0, self._num_starts - 1)

    @property
    def problem(self) -> str | None:
        """Why it is not started any more; None as long as it is restarted."""
        message = f"{self._settings.name} {self._reason}{self._settings.advice}"
        return message if self.state is ChildState.GAVE_UP else None

    def poll(self) -> ChildState:
        """Do what is due: start, kill or replace the child. Never raises and never waits for the child."""
        with self._changed:
            try:
                self._poll()
            except Exception as error:  # no memory to fork, no disk space for its files: a failure like any other
                LOG.info("%s cannot be run", self._settings.name, exc_info=True)
                reason = f"cannot be run ({named(error, 200)})"
                if self._child is None:
                    self._failed(reason)
                else:
                    self._condemn(reason, 0.0)
            return self.state

    def close(self) -> None:
        """End the child and all its processes within seconds, by force if necessary; a second call waits for that."""
        with self._changed:
            if self.state is not ChildState.GAVE_UP:
                self.state = ChildState.CLOSED
            self._changed.notify_all()
        with self._closing:
            if child := self._child:
                try:
                    child.terminate()
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(self._settings.end_budget_s)
                finally:  # also where a signal's exception ends the wait
                    _kill_group(child)
                    child.wait()
            with self._changed:
                self._child = None
                self._release()

    @abstractmethod
    def _start(self) -> Child:
        """A new child, started by `start_process_group`."""

    def _watch(self) -> None:
        """Called by every `poll` while the child runs; must not wait."""

    @abstractmethod
    def _last_words(self) -> str:
        """What the output of a child that has ended adds to `ended with exit code 1`."""

    @abstractmethod
    def _release(self) -> None:
        """Free what belongs to a child that has ended, if any."""

    def _now_up(self) -> None:
        with self._changed:
            if self.state in RUNNING:
                self._up_since = min(self._up_since, self._clock())
                self._was_up, self.state = True, ChildState.UP
                self._changed.notify_all()

    def _condemn(self, reason: str, budget_s: float) -> None:
        """Tell the child to end, and have it killed after `budget_s`; one that has ended keeps its own reason."""
        with self._changed:
            if self.state in RUNNING and self._child and self._child.poll() is None:
                self.state, self._reason, self._due_at = ChildState.ENDING, reason, self._clock() + budget_s
                self._child.terminate()

    def _poll(self) -> None:
        if self.state is ChildState.BACKING_OFF and self._clock() >= self._due_at:
            self._child = self._start()
            self._num_starts += 1
            self.state, self._started_at = ChildState.STARTING, self._clock()
        if self._child is None or self.state is ChildState.CLOSED:  # `close` ends the child
            return
        exit_code = self._child.poll()
        if exit_code is None and self.state in RUNNING:
            self._watch()
        if exit_code is None and self.state is ChildState.ENDING and self._clock() >= self._due_at:
            _kill_group(self._child)
            exit_code = self._child.poll()  # usually still None, and polled again by the next call
        if exit_code is not None:
            _kill_group(self._child)  # what it left behind
            if self.state is not ChildState.ENDING:
                self._reason = f"ended with exit code {exit_code}{self._last_words()}"
            self._failed(self._reason, exit_code)

    def _failed(self, reason: str, exit_code: int | None = None) -> None:
        settings, now, self._child, self._reason = self._settings, self._clock(), None, reason
        self._release()
        self._failures = 1 if now - self._up_since > settings.stable_s else self._failures + 1
        self._up_since = math.inf
        is_proven = self._was_up and settings.is_proven_by_first
        is_hopeless = self._failures >= settings.max_failures and not is_proven
        gives_up = is_hopeless or exit_code in settings.final_exit_codes
        self.state = ChildState.GAVE_UP if gives_up else ChildState.BACKING_OFF
        level = logging.ERROR if gives_up or self._failures == 1 else logging.INFO
        LOG.log(level, "%s %s", settings.name, reason)
        self._due_at = now + backoff_s(self._failures, settings.first_backoff_s, settings.max_backoff_s)
        self._changed.notify_all()


def start_process_group(command: Sequence[str], output: int | IO[bytes], environment: Mapping[str, str]) -> Child:
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


def own_search_path() -> dict[str, str]:
    """An environment with which a Python child can import what this process can, the user's modules included."""
    return {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "PYTHONSAFEPATH": "1"}


def _kill_group(child: Child) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.stdin:
        child.stdin.close()
