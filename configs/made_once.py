"""Folders that are made once and then found by every process: unpacked models, compiled functions.

Invariant: a folder that is there is complete; it is made under another name and renamed, by one process at a time.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make(temporary folder)` unless it already exists; concurrent processes make it once."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.partial-"
    with open(folder.parent / f".{folder.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that prepares %s", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        for left_over in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            make(partial)
            os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
