"""One start of a run as everything that trains it takes it, and the signals that ask it to stop.

Invariant: a signal handler here takes no lock; each learner of the run trains in its own epoch.
"""

import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from actors.environments.vector import EnvironmentSpec
from cluster.plan import RunPlan
from cluster.run.console import Console
from cluster.run.directory import RunDirectory, begin_epoch, record_provenance
from configs.schema import RunConfig


class StopRequest:
    """Turns SIGINT, SIGTERM and SIGHUP into a request to stop; a second SIGINT or SIGTERM ends the process at once.

    SIGHUP never counts as the second signal: a closed terminal sends it more than once, and systemd sends it after
    SIGTERM. Where SIGHUP is ignored (nohup) it stays ignored.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self.on_request: Callable[[], None] = lambda: None
        """Called in the signal handler; must take no lock."""
        self._say = say
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
        for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGHUP:
                return
            raise KeyboardInterrupt
        self.requested = True
        self.on_request()
        with contextlib.suppress(RuntimeError):  # of a print that the signal interrupts: it is not reentrant
            self._say("stopping: writing a checkpoint (repeat to end at once)")


@dataclass(kw_only=True)
class RunSession:
    """What is trained, where, and who watches; in one process and on Ray alike."""

    plan: RunPlan
    spec: EnvironmentSpec
    rubric_hash: str | None
    run: RunDirectory
    epoch: int
    """The run epoch of the newest learner."""
    temporary: Path
    """The directory of the run's temporary files on this node."""
    console: Console
    stop: StopRequest

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.plan.config

    def stop_requested(self) -> bool:
        """Whether the user has asked the run to stop."""
        return self.stop.requested

    def begin_epoch(self) -> None:
        """Enter the next run epoch, for a learner that replaces a dead one."""
        self.epoch = begin_epoch(self.run)
        record_provenance(self.run, self.epoch, self.rubric_hash)
