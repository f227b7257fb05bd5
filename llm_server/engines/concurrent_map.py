"""`concurrent_map`: requests to one endpoint at once, in a bounded number of threads.

Invariant: it returns or raises as soon as it can, however long requests that are under way still take.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

POLL_S = 0.1
Item = TypeVar("Item")
Result = TypeVar("Result")


def concurrent_map(
    function: Callable[[Item], Result], items: Sequence[Item], max_threads: int, stop: threading.Event
) -> list[Result]:
    """`function` of each item, in their order; raises the first error, and RuntimeError once `stop` is set."""
    futures: list[Future[Result]] = [Future() for _ in items]
    waiting = iter(zip(items, futures, strict=True))
    lock, is_over = threading.Lock(), threading.Event()

    def work() -> None:
        while not is_over.is_set():
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            item, future = job
            try:
                future.set_result(function(item))
            except BaseException as error:
                is_over.set()
                future.set_exception(error)

    for _ in range(min(max_threads, len(items))):
        threading.Thread(target=work, name="concurrent-map", daemon=True).start()
    pending = set(futures)
    try:
        while pending:
            if stop.is_set():
                raise RuntimeError("closed before everything was answered")
            done, pending = wait(pending, POLL_S, FIRST_EXCEPTION)
            for future in done:
                future.result()
    finally:
        is_over.set()
    return [future.result() for future in futures]
