"""A file that grows by whole lines, whatever the disk does.

Invariant: the file holds whole lines, in order. One that the disk refuses waits in memory, within a bound, and is written before
the next as soon as there is room; nothing is raised.
"""

import errno
import logging
import os
from collections import deque
from pathlib import Path

LOG = logging.getLogger(__name__)
MAX_WAITING = 10_000


class LineFile:
    """Appends to a file that no other process writes; `problem` says why lines wait, None while none do."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self.problem: str | None = None

    def append(self, line: str) -> None:
        """Write `line`, after those that wait."""
        self._waiting.append(line.encode() + b"\n")
        self._write_waiting()

    def close(self) -> None:
        """Try once more to write what waits, and close."""
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
                LOG.error("%s could not be written (%s); training goes on, and its lines wait in memory", self._path, error)
            self.problem = f"{self._path} could not be written ({error.strerror}): make room; its lines wait in memory"

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, data)
        if written < len(data):  # a disk that fills up takes a part
            os.ftruncate(self._descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
