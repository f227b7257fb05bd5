"""Errors of environments that somebody else wrote: one line that names the environment, and the traceback for the log.

Invariant: whatever an environment raises, in import, making, reset or step, becomes an `EnvironmentFailure`; only a
KeyboardInterrupt does not.
"""

import logging
import sys
import traceback
from typing import Any, NoReturn

from gymnasium.error import DependencyNotInstalled

from configs.errors import one_line

LOG = logging.getLogger(__name__)
MAX_MESSAGE = 300
"""Characters of an exception's own message that are kept."""
MAX_LINE = 2_000
"""Characters of a failure's whole message."""


class EnvironmentFailure(ValueError):
    """An environment raised, or returned what it did not declare; the message names the environment, and is one line
    whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, MAX_LINE))


def environment_failure(env_id: str, error: BaseException, where: str) -> EnvironmentFailure:
    """The failure for `error`, raised in `where` (import, making, reset, step); re-raises a KeyboardInterrupt."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, EnvironmentFailure):
        return error
    text, advice = one_line(error, MAX_MESSAGE), ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        advice = f"; it needs {lacking(error)}: install it"
    elif isinstance(error, TypeError) and where == "reset" and ("seed" in text or "options" in text):
        advice = "; gymnasium's reset takes seed= and options="
    what = f"raised {type(error).__name__} in {where}{': ' if text else ''}{text}{advice}"
    if isinstance(error, DependencyNotInstalled):
        what = f"needs a package that is not installed: {text}"
    failure = EnvironmentFailure(f"environment {env_id!r} {what}")
    failure.__cause__ = error
    return failure


def fail(env_id: str, error: BaseException, where: str) -> NoReturn:
    """Raise the `environment_failure` of these."""
    raise environment_failure(env_id, error, where)


def lacking(error: ImportError) -> str:
    """What a failed import did not find: a package, or a module of a package that is there."""
    name = error.name or ""
    package, dot, _ = name.partition(".")
    return f"the module {name}" if dot and sys.modules.get(package) is not None else f"the package {package}"


def shown(value: object, max_characters: int = 60) -> str:
    """`value` as code shows it, on one line; the name of its type where it cannot be shown."""
    try:
        return one_line(repr(value), max_characters)
    except Exception:
        return type(value).__name__


def close_quietly(env: Any) -> None:
    """Close an environment; errors are logged at debug level, so that the others are closed too."""
    try:
        env.close()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        LOG.debug("an environment could not be closed: %s", one_line(error, MAX_MESSAGE))


def traceback_of(failure: EnvironmentFailure) -> str:
    """The traceback of what the environment raised; empty if it raised nothing."""
    cause = failure.__cause__
    return "" if cause is None else "".join(traceback.format_exception(cause))
