"""The progress of a long task: a bar on a terminal, otherwise a line every ten seconds.

Invariant: it is printed on standard error only, and not at all for a task without items.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_S = 10.0


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields the function to call with each number of further items done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(what, total).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not total) as bar:
        yield partial(bar.advance, bar.add_task(what, total=total))


class Lines:
    """Prints a line every ten seconds, and one at the end, with rate and time left."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began = self._said = time.monotonic()

    def advance(self, number: int) -> None:
        """Count `number` further items as done."""
        self._done += number
        now = time.monotonic()
        if now - self._said > LINE_EVERY_S or self._done == self._total:
            self._said = now
            rate = self._done / max(now - self._began, 1e-9)
            left = f"{(self._total - self._done) / rate:.0f} s left" if self._done < self._total else "done"
            print(f"{self._what}: {self._done} of {self._total}, {rate:.1f}/s, {left}", file=sys.stderr, flush=True)


class RateColumn(ProgressColumn):
    """The items done per second."""

    def render(self, task: Task) -> Text:
        """For example `12.3/s, left:`; empty until the rate is known."""
        return Text(f"{task.speed:.1f}/s, left:" if task.speed else "")
