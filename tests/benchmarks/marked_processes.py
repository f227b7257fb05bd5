"""Processes that a benchmark started, whatever they started in turn: found by a mark in their environment, ended with
the benchmark.

A run has processes in sessions of their own, and a peer's workers may outlive their parent; the environment is what all
of them inherit. A sweeper process waits for the benchmark's end, however it comes about (SIGKILL too), then ends all
that bear the mark.

Invariant: after `Marked` is left, or the benchmark is dead, no marked process lives, and neither its folders nor the
shared memory that torch or multiprocessing of a process killed meanwhile has left are there.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.run.temporary import temporary_directory
from cluster.verbs.bench import CHECKOUT

VARIABLE = "DELPHI_BENCHMARK"
SWEEP_S = 20.0
POLL_S = 0.1


class Marked:
    """A context whose `start` gives processes the mark; `folder` is temporary and theirs."""

    def __enter__(self) -> "Marked":
        self.folder = Path(tempfile.mkdtemp(prefix="delphi-benchmark-"))
        self.run_dir = self.folder / "run"
        self._children: list[subprocess.Popen[bytes]] = []
        folders = (self.folder, temporary_directory(str(self.run_dir)))
        # A session of its own: Ctrl-C is for the benchmark.
        self._sweeper = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(self.folder), str(time.time()), *map(str, folders)],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._sweeper.stdin is not None
        self._sweeper.stdin.close()
        for child in (self._sweeper, *self._children):
            child.wait(2 * SWEEP_S)

    def start(self, command: Sequence[str], output: Path) -> "subprocess.Popen[bytes]":
        """`command` in the checkout, its output in a file; modules of the checkout can be imported."""
        paths = filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])
        environment = os.environ | {
            VARIABLE: str(self.folder),
            "TMPDIR": str(self.folder),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        with output.open("wb") as file:
            child = subprocess.Popen(
                command,
                cwd=CHECKOUT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def processes(self) -> list[psutil.Process]:
        """Those alive."""
        return list(marked(str(self.folder)))


def marked(mark: str) -> Iterator[psutil.Process]:
    """The living processes with this mark, besides this one."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if (
                process.pid != os.getpid()
                and process.environ().get(VARIABLE) == mark
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                yield process


def sweep(mark: str, since: float, folders: Sequence[str]) -> None:
    """End all with this mark by force, those too that appear meanwhile; then remove `folders` and shared memory made
    after `since` (s)."""
    deadline = time.monotonic() + SWEEP_S
    while left := list(marked(mark)):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if time.monotonic() > deadline:
            print(f"processes that cannot be ended: {[process.pid for process in left]}", file=sys.stderr)
            break
        time.sleep(POLL_S)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for path in abandoned_shared_memory(since):
        path.unlink(missing_ok=True)


def abandoned_shared_memory(since: float, folder: Path = Path("/dev/shm")) -> list[Path]:
    """This user's segments of torch and semaphores of multiprocessing made after `since` (s since 1970) that no living
    process maps."""
    found = []
    for path in [*folder.glob("torch_*"), *folder.glob("sem.mp-*")]:
        with suppress(OSError):
            status = path.stat()
            if status.st_uid == os.getuid() and status.st_ctime >= since:
                found.append(path)
    maps = ""
    for path in Path("/proc").glob("[0-9]*/maps") if found else ():
        with suppress(OSError):
            maps += path.read_text()
    return [path for path in found if str(path) not in maps]


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    sweep(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
