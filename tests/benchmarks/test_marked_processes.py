"""What a benchmark starts ends with it: orphans in sessions of their own, and whether the benchmark ends by itself or
is killed."""

import mmap
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from cluster.verbs.bench import CHECKOUT
from tests.benchmarks.marked_processes import Marked, abandoned_shared_memory

ORPHANING = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
    " start_new_session=True)"
)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_dead(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE  # of an init that does not reap


def test_orphans_in_their_own_session_and_temporary_folders_go_with_the_benchmark() -> None:
    with Marked() as marked:
        marked.start([sys.executable, "-c", ORPHANING], marked.folder / "output.txt").wait(60)
        (orphan,) = marked.processes()
    assert is_dead(orphan)
    assert not marked.folder.exists()


def test_a_killed_benchmark_takes_its_processes_along(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from tests.benchmarks.marked_processes import Marked\n"
    code += "with Marked() as marked:\n"
    code += (
        "    child = marked.start([sys.executable, '-c', 'import time; time.sleep(60)'], marked.folder /"
        " 'output.txt')\n"
    )
    code += "    Path(sys.argv[1]).write_text(f'{child.pid} {marked.folder}'); time.sleep(60)"
    said = tmp_path / "said"
    benchmark = subprocess.Popen([sys.executable, "-c", code, str(said)], cwd=CHECKOUT)
    wait_until(lambda: said.exists() and said.read_text())
    pid, folder = said.read_text().split()
    child = psutil.Process(int(pid))
    benchmark.send_signal(signal.SIGKILL)
    benchmark.wait(60)
    wait_until(lambda: is_dead(child) and not Path(folder).exists())


def test_only_new_shared_memory_that_nobody_maps_is_abandoned(tmp_path: Path) -> None:
    for name in ("torch_1_2_3", "sem.mp-abc", "psm_other"):
        (tmp_path / name).write_bytes(b"x")
    now = time.time()
    assert {path.name for path in abandoned_shared_memory(now - 60, tmp_path)} == {"torch_1_2_3", "sem.mp-abc"}
    assert not abandoned_shared_memory(now + 60, tmp_path)
    with open(tmp_path / "torch_1_2_3", "r+b") as file, mmap.mmap(file.fileno(), 1):
        assert [path.name for path in abandoned_shared_memory(now - 60, tmp_path)] == ["sem.mp-abc"]
