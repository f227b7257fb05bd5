"""Standard output and error that may go away while a command goes on: `head` has read enough, the disk is full, the terminal is closed.

Invariant: no `print` fails for where it goes or for a character that cannot be shown; what is printed after a failure goes nowhere.
"""

import contextlib
import errno
import io
import logging
import os
import select
import sys
from collections.abc import Callable

LOG = logging.getLogger(__name__)
READER_LEFT = (errno.EPIPE, errno.EIO)
"""Of a pipe, and of a terminal."""


_is_result = True


def output_may_be_lost() -> None:
    """Say that from here on output only shows how something else goes on, so that losing it is no failure of the command."""
    global _is_result
    _is_result = False


def guarded(command: Callable[[], int]) -> int:
    """The exit code of `command`, run with both streams guarded.

    Output that is lost although a reader is there (a full disk) makes it 1 at least, unless it may be lost. argparse's exits stay exits.
    """
    global _is_result
    _is_result = True
    _fill_missing_streams()
    with contextlib.ExitStack() as streams:
        output = streams.enter_context(_Guarded("stdout"))
        streams.enter_context(_Guarded("stderr"))
        try:
            code = command()
        except SystemExit as exit_:
            lost = _code_of_loss(output)
            raise SystemExit(exit_.code or lost) from None
        lost = _code_of_loss(output)
        return code or lost


def _code_of_loss(output: "_Guarded") -> int:
    output.flush()
    error = output.error
    if error is None or not _is_result or error.errno in READER_LEFT:
        return 0
    print(f"standard output cannot be written ({error.strerror}): make room, or send it elsewhere", file=sys.stderr)
    return 1


class _Guarded:
    """Puts a text stream that cannot fail in the place of `sys.stdout` or `sys.stderr`, and the old one back."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._old = getattr(sys, name)
        self._raw: _Unfailing | None = None

    def __enter__(self) -> "_Guarded":
        try:
            number = self._old.fileno()
        except (AttributeError, OSError, ValueError):  # in memory, as in a test
            return self
        self.flush()
        self._raw = _Unfailing(number, logs=self._name == "stdout")
        buffered = io.BufferedWriter(self._raw)
        line_buffering = self._old.line_buffering or self._old.write_through or self._name == "stderr"
        # backslashreplace: a character that the encoding lacks, or half of one from a file name, is shown by its number
        stream = io.TextIOWrapper(buffered, self._old.encoding, "backslashreplace", line_buffering=line_buffering)
        setattr(sys, self._name, stream)
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()
        setattr(sys, self._name, self._old)

    @property
    def error(self) -> OSError | None:
        """What the first failed write met."""
        return self._raw.error if self._raw else None

    def flush(self) -> None:
        """Write what is buffered."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: whoever had it before has closed it
            getattr(sys, self._name).flush()


class _Unfailing(io.RawIOBase):
    """A file descriptor whose failed writes are forgotten: it then leads to the null device, for child processes too."""

    def __init__(self, number: int, *, logs: bool) -> None:
        self.error: OSError | None = None
        self._number, self._logs = number, logs

    def fileno(self) -> int:
        """The descriptor, which stays open."""
        return self._number

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Whether a terminal is (still) there."""
        return os.isatty(self._number)

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        """How many bytes were taken: all of them where they cannot be written."""
        while True:
            try:
                return os.write(self._number, data)
            except BlockingIOError:  # whoever gave this stream does not wait; `print` does
                select.select([], [self._number], [])
            except OSError as error:
                self._lose(error)
                return len(data)

    def _lose(self, error: OSError) -> None:
        if self.error is not None:
            return
        self.error = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._number)
        os.close(nowhere)
        if self._logs:  # the other stream's loss has nowhere to be told
            LOG.info("standard output cannot be written any more (%s): nothing more is shown", error.strerror)


def _fill_missing_streams() -> None:
    """Give descriptors 0 to 2 to the null device where they are closed (`>&-`), or the next file to be opened would be printed into."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))
