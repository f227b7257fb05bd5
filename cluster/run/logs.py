"""Log files of a run: every process appends to the run's log.txt, and a worker's standard error goes to a file of its own under
`<run_dir>/logs`, so that its stderr tail can be shown wherever it ran.

Invariant: set up by processes when they start, never at import; a disk that refuses log lines disturbs nothing else.
"""

import contextlib
import faulthandler
import logging
import os
import sys
from contextlib import suppress
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
                print(
                    f"{self.baseFilename} could not be written ({self._error}): lines are lost until it can",
                    file=sys.stderr,
                )

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


MAX_BYTES = 1_000_000


MAX_FILES = 20


TAIL_BYTES, NUM_LINES = 16_384, 6


FATAL, NOT_TOLD = "Fatal Python error", "Extension modules:"


class StderrFile:
    """This process's standard error from now on; tracebacks of crashes in C go there too."""

    def __init__(self, path: Path) -> None:
        """Where the file cannot be written, standard error stays as it is."""
        self._path: Path | None = None
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, 2)
            os.close(descriptor)
            self._path = path
        faulthandler.enable(file=2, all_threads=False)  # only where it happened

    def trim(self) -> None:
        """Empty the file where it has grown too large."""
        if self._path is not None and os.fstat(2).st_size > MAX_BYTES:
            os.ftruncate(2, 0)

    def discard(self) -> None:
        """Remove the file: there is nothing to tell."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def stderr_path(run_dir: Path, worker_id: str) -> Path:
    """Where a worker's standard error goes."""
    return run_dir / "logs" / f"worker-{worker_id}.err"


def last_words(path: Path) -> str:
    """The last lines of such a file, or where it ends with a crash in C the crash and where it happened; empty where there is nothing."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        lines = [line for line in lines if line and not line.startswith(NOT_TOLD)]
        crashes = [index for index, line in enumerate(lines) if line.startswith(FATAL)]
        return "\n".join(lines[crashes[-1] :][:NUM_LINES] if crashes else lines[-NUM_LINES:])
    return ""


def prune(run_dir: Path) -> None:
    """Remove empty files, and all but the newest few."""
    dated = []
    for path in (run_dir / "logs").glob("worker-*.err"):
        with suppress(OSError):  # a worker that ends removes its own
            status = path.stat()
            dated.append((status.st_mtime if status.st_size else 0.0, path))
    for index, (when, path) in enumerate(sorted(dated, reverse=True)):
        if index >= MAX_FILES or not when:
            path.unlink(missing_ok=True)
