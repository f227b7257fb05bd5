"""Log files of a run: every process appends to the run's log.txt, and a worker's standard error goes to its own file
under `<run_dir>/logs`, so that its stderr tail can be shown wherever it ran.

Invariant: set up by processes when they start, never at import; a full or failing disk loses log lines and nothing
else.
"""

import faulthandler
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

MAX_BYTES, MAX_FILES = 1_000_000, 20
"""Of a worker's stderr file, and of such files in a run."""
TAIL_BYTES, TAIL_LINES = 16_384, 6
FATAL, LEFT_OUT = "Fatal Python error", "Extension modules:"


class _LogFile(logging.FileHandler):
    """Reports lost lines once, where Python's own handler writes a traceback for each."""

    _error: OSError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; if the disk fails, report that once."""
        before, self._error = self._error, None
        super().emit(record)
        if self._error is not None and before is None:
            with suppress(OSError):  # standard error may be on the same disk
                message = f"{self.baseFilename} could not be written ({self._error}): lines are lost until it can"
                print(message, file=sys.stderr)

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by `emit` while it handles the error."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._error = error
        else:
            super().handleError(record)


def log_to_file(path: Path) -> None:
    """Append this process's log records to `path`, one line each, with the process id."""
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s [{os.getpid()}] %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in [existing for existing in root.handlers if isinstance(existing, logging.FileHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("nle").setLevel(logging.WARNING)  # else one line per environment that nothing is saved


class StderrFile:
    """Redirects this process's standard error to a file, tracebacks of crashes in C included."""

    def __init__(self, path: Path) -> None:
        """Standard error stays as it is where the file cannot be written."""
        self._path: Path | None = None
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, 2)
            os.close(descriptor)
            self._path = path
        faulthandler.enable(file=2, all_threads=False)  # of the thread that crashed alone

    def trim(self) -> None:
        """Truncate the file where it exceeds MAX_BYTES."""
        if self._path is not None and os.fstat(2).st_size > MAX_BYTES:
            os.ftruncate(2, 0)

    def discard(self) -> None:
        """Remove the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def stderr_path(run_dir: Path, worker_id: str) -> Path:
    """Where a worker's standard error goes."""
    return run_dir / "logs" / f"worker-{worker_id}.err"


def stderr_tail(path: Path) -> str:
    """The last lines of a stderr file, or of a crash in C its message and traceback; empty where there is nothing."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        lines = [line for line in lines if line and not line.startswith(LEFT_OUT)]
        crashes = [index for index, line in enumerate(lines) if line.startswith(FATAL)]
        return "\n".join(lines[crashes[-1] :][:TAIL_LINES] if crashes else lines[-TAIL_LINES:])
    return ""


def prune(run_dir: Path) -> None:
    """Remove empty stderr files, and all but the newest MAX_FILES."""
    dated = []
    for path in (run_dir / "logs").glob("worker-*.err"):
        with suppress(OSError):  # a worker that ends removes its file
            status = path.stat()
            dated.append((status.st_mtime if status.st_size else 0.0, path))
    for index, (when, path) in enumerate(sorted(dated, reverse=True)):
        if index >= MAX_FILES or not when:
            path.unlink(missing_ok=True)
