import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.on_ray.orphans import end_orphans

ROOT = Path(__file__).parents[3]
SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def actor(directory: Path, name: str = "ray::WorkerActor") -> subprocess.Popen:
    """A process that looks like an actor of a run with this temporary directory."""
    return subprocess.Popen([name, "-c", SLEEP], executable=sys.executable, env=os.environ | {"TMPDIR": str(directory)})


def daemon(directory: Path) -> subprocess.Popen:
    """A process that looks like one of Ray's own."""
    return subprocess.Popen([sys.executable, "-c", SLEEP, f"--session-dir={directory}/ray/session_1"])


def test_only_what_belonged_to_the_runs_cluster_is_ended(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    started += [actor(mine), daemon(mine), actor(other), daemon(other), actor(mine, "python")]
    time.sleep(0.2)
    assert end_orphans(mine) == 2
    assert [process.poll() for process in started[:2]] == [-signal.SIGKILL] * 2
    assert [process.poll() for process in started[2:]] == [None] * 3
    assert end_orphans(mine) == 0


def watched_driver(directory: Path) -> subprocess.Popen:
    """A driver that has a watch and says so."""
    code = (
        "from pathlib import Path\nfrom cluster.on_ray.orphans import OrphanWatch\nwith"
        f" OrphanWatch(Path({str(directory)!r})):\n    print('on', flush=True)\n    input()"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "on\n"
    return driver


def test_the_watch_ends_a_killed_drivers_cluster_and_removes_its_directory(
    tmp_path: Path, started: list[subprocess.Popen]
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    driver, worker = watched_driver(directory), actor(directory)
    started += [worker]
    driver.kill()
    driver.communicate()
    assert worker.wait(10) == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while directory.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_driver_that_ends_by_itself_takes_its_watch_along(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    driver, worker = watched_driver(tmp_path), actor(tmp_path)
    started += [worker]
    driver.communicate("\n", timeout=10)
    assert driver.returncode == 0
    assert worker.poll() is None
    assert tmp_path.exists()


def test_a_new_start_ends_the_watch_of_the_killed_driver_first(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    driver = watched_driver(tmp_path)
    driver.kill()
    driver.communicate()
    assert end_orphans(tmp_path) == 1
    successor = actor(tmp_path)
    started += [successor]
    time.sleep(3)
    assert successor.poll() is None
    assert tmp_path.exists()
