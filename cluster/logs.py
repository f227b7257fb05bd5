"""Logging of a run: every process appends to the run's log.txt.

Invariant: set up by processes when they start, never at import.
"""

import logging
import os
from pathlib import Path


def log_to_file(path: Path) -> None:
    """Append this process's log records to `path`, one line each, with the process id."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s [{os.getpid()}] %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in [existing for existing in root.handlers if isinstance(existing, logging.FileHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("nle").setLevel(logging.WARNING)  # one line per environment that says nothing is saved
