"""`FairLock`: a lock that a thread which takes it again and again must yield to whoever waits.

Invariant: of two threads that want it, the one that has just had it comes second.
"""

import threading


class FairLock:
    """For `with`; not reentrant. A plain lock that is released and taken again at once may never change hands."""

    def __init__(self) -> None:
        self._door = threading.Lock()  # held while waiting for the lock, so that the next in line waits here
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._door:
            self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
