"""What goes wrong in an environment that somebody else wrote: one line that names it, and the traceback for the log.

Invariant: whatever an environment raises, in import, making, reset or step, comes out as an `EnvironmentFailure`; only the user's own
interrupt does not.
"""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from gymnasium.error import DependencyNotInstalled

from configs.errors import one_line

LOG = logging.getLogger(__name__)
MAX_MESSAGE = 300
"""Characters of an exception's own message that are repeated."""


class EnvironmentFailure(ValueError):
    """An environment raised, or gave what it did not declare; the message is one line that names the environment."""


class EnvironmentErrors:
    """Failures of the environments of one vector, counted until they are taken."""

    def __init__(self) -> None:
        self._count, self._first = 0, ""

    def note(self, failure: EnvironmentFailure, index: int | None = None) -> None:
        """Count a failure of environment `index` (None: of all of them)."""
        if not self._first:
            which = "" if index is None else f"environment {index} of this worker:\n"
            self._first = f"{which}{traceback_of(failure)}{failure}"
        self._count += 1

    def take(self) -> tuple[int, str]:
        """How many since the last call, and of the first one the traceback, which ends with its line."""
        taken = self._count, self._first
        self._count, self._first = 0, ""
        return taken


def failure_of(env_id: str, error: BaseException, where: str) -> EnvironmentFailure:
    """The failure for what the environment raised in `where` (import, making, reset, step); a KeyboardInterrupt is raised again."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, EnvironmentFailure):
        return error
    text = one_line(error, MAX_MESSAGE)
    if isinstance(error, DependencyNotInstalled):
        return _caused(f"environment {env_id!r} needs a package that is not installed: {text}", error)
    advice = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        advice = f"; it needs the package {error.name.partition('.')[0]}: install it"
    elif isinstance(error, TypeError) and where == "reset" and ("seed" in text or "options" in text):
        advice = "; gymnasium's reset takes seed= and options="
    return _caused(
        f"environment {env_id!r} raised {type(error).__name__} in {where}{': ' if text else ''}{text}{advice}", error
    )


def _caused(line: str, error: BaseException) -> EnvironmentFailure:
    failure = EnvironmentFailure(line)
    failure.__cause__ = error
    return failure


@contextmanager
def named(env_id: str, where: str) -> Iterator[None]:
    """Whatever is raised in it is the environment's failure in `where`."""
    try:
        yield
    except BaseException as error:
        fail(env_id, error, where)


def fail(env_id: str, error: BaseException, where: str) -> NoReturn:
    """Raise `failure_of` these."""
    raise failure_of(env_id, error, where)


def close_quietly(env: Any) -> None:
    """Close an environment; what cannot be closed must not keep others from it."""
    try:
        env.close()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        LOG.debug("an environment could not be closed: %s", one_line(error, MAX_MESSAGE))


def traceback_of(failure: EnvironmentFailure) -> str:
    """The traceback of what the environment raised; empty where it raised nothing."""
    cause = failure.__cause__
    return "" if cause is None else "".join(traceback.format_exception(cause))
