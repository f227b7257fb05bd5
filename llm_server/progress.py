"""Progress of a long command: a bar where standard error is a terminal, else a line every ten seconds and at the end.

Invariant: it is printed on standard error only, and not at all for a task without items.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_S = 10.0


def say_on_stderr(text: str) -> None:
    """Print a line."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: int, say: Callable[[str], None] = say_on_stderr) -> Iterator[Callable[[int], None]]:
    """Yields the function to call with each number of further items done, and with 0 now and then where one takes long.
    Another `say` gets lines, never a bar."""
    console = Console(stderr=True)
    if say is not say_on_stderr or not console.is_terminal:
        yield _lines(what, total, say)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not total) as bar:
        task = bar.add_task(what, total=total)
        yield lambda number: bar.advance(task, number) if number else None


def _lines(what: str, total: int, say: Callable[[str], None]) -> Callable[[int], None]:
    """Says a line every ten seconds, and one at the end, with rate and time left."""
    done, began = 0, time.monotonic()
    said = began

    def advance(number: int) -> None:
        nonlocal done, said
        done, now = done + number, time.monotonic()
        if now - said > LINE_EVERY_S or done == total:
            said, rate = now, done / max(now - began, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if done else ""
            say(f"{what}: {done} of {total}, {rate:.1f}/s{left if done < total else ', done'}")

    return advance


class RateColumn(ProgressColumn):
    """The items done per second."""

    def render(self, task: Task) -> Text:
        """For example `12.3/s, left:`; empty until the rate is known."""
        return Text(f"{task.speed:.1f}/s, left:" if task.speed else "")
