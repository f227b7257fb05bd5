"""Standard output and error that may fail during a command: `head` has exited, the disk is full, no terminal.

Invariant: no `print` fails because of its stream or a character in it; output after a failure is dropped, and progress
also while nobody reads it. Ctrl-C ends a command with one line.
"""

import contextlib
import errno
import io
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any

LOG = logging.getLogger(__name__)
READER_LEFT = (errno.EPIPE, errno.EIO)
"""Errors of a pipe, and of a terminal, without a reader."""
PATIENCE_S = 10.0
"""How long progress waits for a reader that has stopped reading; from then on it is dropped until there is room."""
_is_result = True


def output_may_be_lost() -> None:
    """Declare that from here on output only reports progress, so that losing it is no failure of the command."""
    global _is_result
    _is_result = False


def guarded(command: Callable[..., int], *arguments: Any) -> int:
    """The exit code of `command(*arguments)`, run with both streams guarded.

    Output that is lost although a reader exists (a full disk) turns exit code 0 into 1, unless it may be lost. A
    SystemExit, as argparse raises it, stays one; Ctrl-C is exit code 130.
    """
    global _is_result
    _is_result = True
    _fill_missing_streams()
    _forget_empty_size()
    with contextlib.ExitStack() as streams:
        output = streams.enter_context(_guarded_stream("stdout"))
        streams.enter_context(_guarded_stream("stderr"))
        try:
            code = command(*arguments)
        except SystemExit as exit_:
            lost = _code_of_loss(output)
            raise SystemExit(exit_.code or lost) from None
        except KeyboardInterrupt:
            print("delphi: interrupted", file=sys.stderr)
            return 130
        lost = _code_of_loss(output)
        return code or lost


def _code_of_loss(output: "_Unfailing | None") -> int:
    _flush("stdout")
    error = output.error if output else None
    if error is None or not _is_result or error.errno in READER_LEFT:
        return 0
    print(f"standard output cannot be written ({error.strerror}): make room, or send it elsewhere", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _guarded_stream(name: str) -> Iterator["_Unfailing | None"]:
    """Replace `sys.stdout` or `sys.stderr` by a text stream that cannot fail, and restore the old one.

    Yields the new stream's descriptor; None where the stream has none and stays, as in a test.
    """
    old = getattr(sys, name)
    try:
        number = old.fileno() if isinstance(old, io.TextIOWrapper) else None  # a notebook's stream has one, not its own
    except (OSError, ValueError):
        number = None
    if number is None:
        yield None
        return
    _flush(name)
    raw = _Unfailing(number, logs=name == "stdout")
    line_buffering = old.line_buffering or old.write_through or name == "stderr"
    # backslashreplace: a character that the encoding lacks, or a lone surrogate of a file name, is shown by its code
    buffered = io.BufferedWriter(raw)
    stream = io.TextIOWrapper(buffered, old.encoding, "backslashreplace", line_buffering=line_buffering)
    setattr(sys, name, stream)
    try:
        yield raw
    finally:
        _flush(name)
        setattr(sys, name, old)


def _flush(name: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed before
        getattr(sys, name).flush()


class _Unfailing(io.RawIOBase):
    """A file descriptor that turns into the null device at the first failed write, for child processes too."""

    def __init__(self, number: int, *, logs: bool) -> None:
        self.error: OSError | None = None
        self._number, self._logs = number, logs
        self._patience_s = PATIENCE_S
        self._room = select.poll()
        self._room.register(number, select.POLLOUT)

    def fileno(self) -> int:
        """The descriptor, which stays open."""
        return self._number

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Whether the descriptor is (still) a terminal."""
        return os.isatty(self._number)

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        """The number of bytes accepted: all of them where they cannot be written."""
        while self._has_room():
            try:
                # A pipe with room takes as much at once; a result may wait for its reader.
                return os.write(self._number, data if _is_result else data[: select.PIPE_BUF])
            except BlockingIOError:  # the stream is non-blocking; `print` must wait
                continue
            except OSError as error:
                self._lose(error)
                break
        return len(data)

    def _has_room(self) -> bool:
        """Wait until something can be written; progress waits only as long as it has patience, and False is its end."""
        if self._room.poll(None if _is_result else 1000 * self._patience_s):
            self._patience_s = PATIENCE_S
            return True
        if self._patience_s and self._logs:
            LOG.info("standard output is not read any more: nothing is shown until it is")
        self._patience_s = 0.0
        return False

    def _lose(self, error: OSError) -> None:
        if self.error is not None:
            return
        self.error = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._number)
        os.close(nowhere)
        if self._logs:  # the log goes to standard error, so its own loss cannot be logged
            LOG.info("standard output cannot be written any more (%s): nothing more is shown", error.strerror)


def _forget_empty_size() -> None:
    """Remove a width or height of 0, which terminals without a size export: rich would show nothing in it."""
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "1").strip("0"):
            del os.environ[name]


def _fill_missing_streams() -> None:
    """Open the null device as each closed descriptor (`>&-`) of 0 to 2, or the next file would get the output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))
