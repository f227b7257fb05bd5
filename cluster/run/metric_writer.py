"""Writes metric lines to metrics.jsonl, TensorBoard and, inside a Ray process, Ray's metrics endpoint; and beside them
what captions were paid so far.

Invariant: every line holds every catalogue name (null where undefined), in runs with several terms of the reward also
what is known of each, and no other; the file holds whole lines, in
order. A line is on disk when `write` returns; one that cannot be written is kept in memory, within a bound, and written
as soon as there is room. While a writer is open every catalogue metric is at Ray's endpoint.
"""

import contextlib
import errno
import json
import logging
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.metrics import CATALOGUE, NAMES, OF_TERMS, RAY_PREFIX, TERMS, UNDEFINED, Metric
from cluster.trackers.backends import flat_numbers
from learner.reward.paid import PaidRewards

LOG = logging.getLogger(__name__)
MAX_WAITING = 10_000
PAID = "paid.jsonl"
"""One line per metric line: the intrinsic reward paid so far, in total and by caption."""
PAID_CAPTIONS = 32
"""The captions of such a line, those that were paid most."""
REPEAT_S = 1.0
"""Well below Ray's report interval (10 s); setting all gauges takes about 0.1 ms."""


class LineAppender:
    """Appends to a file that no other process writes; `problem` says why lines are not written, None if they are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self.problem: str | None = None

    def append(self, line: str) -> None:
        """Write `line`, after lines not written yet."""
        self._waiting.append(line.encode() + b"\n")
        self._write_waiting()

    def close(self) -> None:
        """Try once more to write all lines, and close."""
        self._write_waiting()
        os.close(self._descriptor)

    def _write_waiting(self) -> None:
        try:
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
            self.problem = None
        except OSError as error:
            if self.problem is None:
                message = "%s could not be written (%s); training goes on, and its lines wait in memory"
                LOG.error(message, self._path, error)
            self.problem = f"{self._path} could not be written ({error.strerror}): make room; its lines wait in memory"

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, data)
        if written < len(data):  # a disk that fills up writes a part
            os.ftruncate(self._descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class MetricWriter:
    """One run's metric outputs; `close` flushes them."""

    def __init__(self, directory: Path, *, tensorboard: bool, run_name: str, env_steps: int = 0) -> None:
        """`env_steps` is where the run resumes: TensorBoard drops what was written beyond it."""
        self._file, self._paid = LineAppender(directory / "metrics.jsonl"), LineAppender(directory / PAID)
        self._tensorboard = _TensorBoard(directory / "tensorboard", env_steps) if tensorboard else None
        ray = sys.modules.get("ray")  # `inline` never imports it
        self._gauges = RayGauges(run_name) if ray is not None and ray.is_initialized() else None

    def write(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write one line and return it as written; raises KeyError for a name that the catalogue lacks."""
        unknown = values.keys() - NAMES - {TERMS}
        if unknown:
            raise KeyError(f"metrics {sorted(unknown)} are not in cluster.metrics.CATALOGUE; add them there")
        line = {metric.name: _finite(values.get(metric.name)) for metric in CATALOGUE}
        if terms := values.get(TERMS):
            line[TERMS] = {name: {key: _finite(value) for key, value in term.items()} for name, term in terms.items()}
        self._file.append(json.dumps(line))
        if self._tensorboard is not None and self._file.problem is None:
            self._tensorboard.write(line)
        if self._gauges is not None:
            self._gauges.show(line)
        return line

    def write_paid(self, env_steps: int, paid: PaidRewards) -> None:
        """Write what was paid until `env_steps`, those of the metric line; nothing where nothing was."""
        total, captions = paid.largest(PAID_CAPTIONS)
        if captions:
            self._paid.append(json.dumps({"env_steps": env_steps, "total": total, "captions": captions}))

    @property
    def problem(self) -> str | None:
        """Why metrics.jsonl is behind, for the user; None while it is not."""
        return self._file.problem

    def close(self) -> None:
        """Flush and close the files, and leave Ray's endpoint."""
        if self._gauges is not None:
            self._gauges.close()
        self._file.close()
        self._paid.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class _TensorBoard:
    """TensorBoard's event files; after a disk error lines are left out until a new file can be written."""

    def __init__(self, directory: Path, env_steps: int) -> None:
        self._directory, self._steps_before, self._is_failing = directory, env_steps, False
        self._writer: Any = None

    def write(self, line: Mapping[str, Any]) -> None:
        """Every metric that is defined, those of a term as `terms/NAME/...`."""
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self._directory), purge_step=self._steps_before + 1)
            for name, value in flat_numbers(line):
                self._writer.add_scalar(name, value, line["env_steps"])
            self._steps_before, self._is_failing = line["env_steps"], False
        except OSError as error:  # its writer thread has ended with the error
            if not self._is_failing:
                message = "TensorBoard's file could not be written (%s); lines are left out of it until there is room"
                LOG.error(message, error)
            self._is_failing = True
            self.close()

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None


class RayGauges:
    """The metrics as gauges of `ray.util.metrics`, tagged with the run, those of a term (`term_...`) with its name too,
    at the endpoints of nodes that Ray gives to Prometheus; `close` ends the thread that sets them.

    An undefined metric is 0 with the label `undefined="yes"`, because Ray drops NaN. Ray exports a gauge only in the
    report interval in which it was set and drops it two intervals later, so all are set repeatedly. Counters are gauges
    too: Ray's own counters start at 0 in every process and can only be added to, so a resumed run could not restore
    one."""

    def __init__(self, run_name: str) -> None:
        from ray.util.metrics import Gauge

        def gauge(metric: Metric, *tags: str) -> Any:
            description, keys = f"{metric.meaning} [{metric.unit}]", ("run", *tags, UNDEFINED)
            made = Gauge(RAY_PREFIX + metric.name, description=description, tag_keys=keys)
            return made.set_default_tags({"run": run_name})

        self._gauges = {metric.name: gauge(metric) for metric in CATALOGUE}
        self._of_terms = {metric.name.removeprefix("term_"): gauge(metric, "term") for metric in OF_TERMS}
        self._line: Mapping[str, Any] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="gauges", daemon=True)
        self._thread.start()

    def show(self, line: Mapping[str, Any]) -> None:
        """Set the gauges to this metric line's values, within REPEAT_S; None is undefined."""
        self._line = line

    def close(self) -> None:
        """End the thread; Ray then drops the values."""
        self._closed.set()
        self._thread.join()

    def _repeat(self) -> None:
        while True:
            line = self._line
            for name, gauge in self._gauges.items():
                _set(gauge, line.get(name))
            for term, figures in line.get(TERMS, {}).items():
                for name, gauge in self._of_terms.items():
                    _set(gauge, figures.get(name), term=term)
            if self._closed.wait(REPEAT_S):
                return


def _set(gauge: Any, value: float | None, **tags: str) -> None:
    gauge.set(0 if value is None else value, tags={UNDEFINED: "yes" if value is None else "", **tags})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
