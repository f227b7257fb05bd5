"""Runs a command as a child and leaves nothing of it behind: `python -P child_guard.py FOLDER PROGRAM ARGUMENT...`.

Invariant: when standard input ends (the parent has died or closed its end), SIGTERM arrives or the command exits, every
process of the group is ended and FOLDER, the command's temporary folder, removed; the exit code is the command's.

It uses the standard library alone, so that any interpreter can run it by its path. Its parent starts it in a session of
its own. SIGKILL of the guard also kills the command; the command's own children, and FOLDER, are left to the parent.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

GRACE_S = 3.0
"""Between SIGTERM and SIGKILL."""
TRACKERS_S = 5.0
"""For Python's resource trackers to exit after all other processes."""
POLL_S = 0.05
PR_SET_PDEATHSIG = 1


def main(folder: str, command: Sequence[str]) -> int:
    """Run `command`, with `folder` for its temporary files, until it or standard input ends. The exit code is the
    command's, 128 + n where signal n ended it."""
    if os.getpgrp() != os.getpid():
        os.setsid()  # the group that is killed must hold no other process
    wake_end, wake = os.pipe()  # one byte on it ends the wait; an Event set by a signal handler can deadlock
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake, b"."))
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=os.environ | {"TMPDIR": folder}, preexec_fn=end_with_parent
        )
    except OSError as error:
        print(f"{command[0]} cannot be run: {error}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return 127
    for wait in (child.wait, _wait_for_end_of_input):
        threading.Thread(target=_wake_after, args=(wait, wake), daemon=True).start()
    os.read(wake_end, 1)
    _end_group()
    shutil.rmtree(folder, ignore_errors=True)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _wake_after(wait: Callable[[], object], wake: int) -> None:
    wait()
    os.write(wake, b".")


def _wait_for_end_of_input() -> None:
    while os.read(0, 4096):
        pass


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have this process sent signal `number` when the thread that started it ends; for `preexec_fn`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _end_group() -> None:
    """SIGTERM to all others of the group, then SIGKILL to those that remain; Python's resource trackers last, since
    they free the shared memory of the others once those have exited."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    if _gone_within(GRACE_S):
        return
    _kill(pid for pid in _others() if not _is_tracker(pid))
    if not _gone_within(TRACKERS_S):
        _kill(_others())


def _gone_within(seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _others():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _others() -> list[int]:
    """The running processes of this one's group besides itself (none where there is no /proc)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # pid (name) state parent group ...; a name may hold spaces and brackets
            state, _, group = entry.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(group) == os.getpgrp() and state != "Z" and int(entry.parent.name) != os.getpid():
                found.append(int(entry.parent.name))
    return found


def _is_tracker(pid: int) -> bool:
    with suppress(OSError):
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
