"""Ends the processes of a Ray cluster whose driver was killed: `python -P orphans.py DIRECTORY SESSIONS` watches one
driver.

Invariant: it ends only processes that have the run's own temporary directory in their command or environment, and only
when the driver is dead: the watch learns that from the end of its standard input, a new start from holding the run's
lock.

It needs the standard library alone, so that the watch is small.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE_S = 2.0
"""The time in which Ray's processes may end by themselves after the driver."""
LIMIT_S = 10.0


class OrphanWatch:
    """A child process that outlives this one until it has ended the orphans; use it around a cluster's life."""

    def __init__(self, directory: Path, sessions: Path | None = None) -> None:
        """`directory`: the run's temporary directory on this node; `sessions`: its cluster's (default: `ray` in it)."""
        # In its own session, so that Ctrl-C in the terminal does not reach it.
        command = [sys.executable, "-P", __file__, str(directory), str(sessions or directory / "ray")]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def __enter__(self) -> "OrphanWatch":
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._child.communicate(b"done", timeout=GRACE_S)
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


def end_orphans(directory: Path, sessions: Path | None = None) -> int:
    """End every process of a Ray cluster of `directory`, with sessions there or in `sessions`; returns how many."""
    ended = set()
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        left = _processes_of(directory, sessions or directory / "ray")
        if not left:
            break
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        ended.update(left)
        time.sleep(0.05)
    return len(ended)


def _processes_of(directory: Path, sessions: Path) -> list[int]:
    """Ray's own processes, which name its session directory; its workers, which have the temporary directory in their
    environment; and the watch of the killed driver, which would end a new start's processes."""
    session, variable, watch = (
        os.fsencode(text) for text in (sessions, f"TMPDIR={directory}", f"{__file__}\0{directory}\0")
    )
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            of_ray = session in command or (
                command.startswith(b"ray::") and variable in (folder / "environ").read_bytes().split(b"\0")
            )
            if (of_ray or watch in command) and int(folder.name) != os.getpid() and folder.stat().st_uid == os.getuid():
                found.append(int(folder.name))
    return found


def main(directory: str, sessions: str) -> int:
    """Wait until the driver is done, or dead."""
    if os.read(0, 16):
        return 0
    time.sleep(GRACE_S)
    end_orphans(Path(directory), Path(sessions))
    for left in (directory, Path(sessions).parent):
        shutil.rmtree(left, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
