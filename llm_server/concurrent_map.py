"""`concurrent_map`: a function over items in a few threads, for calls that wait for other machines.

Invariant: it ends at the first error or when told to stop, and nobody ever waits for a call that hangs: its thread is a daemon.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
POLL_S = 0.1


def concurrent_map(function: Callable[[Item], Result], items: Sequence[Item], max_threads: int, stop: threading.Event) -> list[Result]:
    """`function` of each item, in their order, at most `max_threads` at once.

    Raises the first error; RuntimeError once `stop` is set.
    """
    waiting = iter(enumerate(items))
    lock, is_over = threading.Lock(), threading.Event()
    done: queue.SimpleQueue[tuple[int, Result | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        while not is_over.is_set():
            with lock:
                index, item = next(waiting, (None, None))
            if index is None:
                return
            try:
                done.put((index, function(item), None))  # type: ignore[arg-type]
            except BaseException as error:
                done.put((index, None, error))

    for _ in range(min(max_threads, len(items))):
        threading.Thread(target=work, name="concurrent-map", daemon=True).start()
    results: dict[int, Result] = {}
    try:
        while len(results) < len(items):
            if stop.is_set():
                raise RuntimeError("closed before everything was answered")
            try:
                index, result, error = done.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            results[index] = result  # type: ignore[assignment]
    finally:
        is_over.set()
    return [results[index] for index in range(len(items))]
