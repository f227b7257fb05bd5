import subprocess
import sys

import psutil
import pytest

from tests.benchmarks import memory

SHARED_MIB = 64
SHARING = f"""
import mmap, os
pages = mmap.mmap(-1, {SHARED_MIB} << 20)
pages.write(b"x" * len(pages))
child = os.fork()
seen = sum(pages[::4096])
if child:
    print(child, flush=True)
input()
"""


def test_pages_that_two_processes_map_count_once_in_the_sum() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SHARING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        while child.memory_full_info().rss < SHARED_MIB << 20:  # it reads them yet
            assert child.is_running()
        parts = memory.memory_of([psutil.Process(parent.pid), child])
        parent.communicate("\n\n")
    assert parts.keys() == {"ray PSS", "ray RSS"}, "a process of no part"
    assert parts["ray RSS"] > 2 * SHARED_MIB
    assert SHARED_MIB < parts["ray PSS"] < 1.5 * SHARED_MIB


@pytest.mark.parametrize("minutes", [["5"], ["5", "5.5"], ["-1", "5"], ["20", "5"]])
def test_minutes_that_cannot_be_compared_are_refused(minutes: list[str]) -> None:
    with pytest.raises(ValueError, match="wanted two or more, each at least 1 after the one before"):
        memory.main(["--minutes", *minutes])
