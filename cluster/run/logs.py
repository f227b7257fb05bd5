"""Logging of a run: every process appends to the run's log.txt.

Invariant: set up by processes when they start, never at import; a disk that refuses log lines disturbs nothing else.
"""

import contextlib
import logging
import os
import sys
from pathlib import Path


class _LogFile(logging.FileHandler):
    """Says once that lines are lost, where Python's own handler writes a traceback for each."""

    _error: OSError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """One line, or none where the disk refuses."""
        before, self._error = self._error, None
        super().emit(record)
        if self._error is not None and before is None:
            with contextlib.suppress(OSError):  # the disk of both
                print(f"{self.baseFilename} could not be written ({self._error}): lines are lost until it can", file=sys.stderr)

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by `emit` while it handles the error."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._error = error
        else:
            super().handleError(record)


def log_to_file(path: Path) -> None:
    """Append this process's log records to `path`, one line each, with the process id."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s [{os.getpid()}] %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in [existing for existing in root.handlers if isinstance(existing, logging.FileHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("nle").setLevel(logging.WARNING)  # one line per environment that says nothing is saved
