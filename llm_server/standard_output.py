"""Standard output that somebody may stop reading, as `head` does.

Invariant: a reader that has had enough is no error, and what is printed after that goes nowhere.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Print inside; at the end all of it is out, or the reader is gone."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or the interpreter's last flush would fail again
        os.close(nowhere)
