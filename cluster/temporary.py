"""The one directory for a run's temporary files on a node: NetHack's engine copies, and Ray's session in `local`.

Invariant: swept when a run starts and when it ends, so that even `kill -9` leaves nothing for longer than until the next start.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

ROOT = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
"""Short on purpose: Ray puts sockets below it, and their paths must stay under 107 bytes."""


def temporary_directory(run_dir: str) -> Path:
    """Where the run at `run_dir` keeps temporary files on this node; not created."""
    digest = hashlib.sha256(os.path.abspath(run_dir).encode()).hexdigest()[:10]
    return ROOT / f"delphi-{os.getuid()}-{digest}"


def enter(run_dir: str) -> Path:
    """Create the directory and make it what `tempfile` uses in this process and in its children."""
    path = temporary_directory(run_dir)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(path)
    tempfile.tempdir = str(path)
    return path


def sweep(run_dir: str) -> None:
    """Remove the directory and all in it; call only while holding the run's lock."""
    path = temporary_directory(run_dir)
    shutil.rmtree(path, ignore_errors=True)
    if tempfile.tempdir == str(path):
        tempfile.tempdir = None
        os.environ.pop("TMPDIR", None)
