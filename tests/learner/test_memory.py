import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys, threading
import numpy as np
from learner.memory import keep_freed_memory

def allocate():
    for _ in range(4):
        arrays = [np.ones(3_000_000) for _ in range(10)]  # 24 MB each

def measure():
    if sys.argv[1] == "kept":
        keep_freed_memory()
    allocate()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    allocate()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[2] == "main":
    measure()
else:
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
"""


def page_faults(memory: str, thread: str) -> int:
    return int(
        subprocess.run(
            [sys.executable, "-c", PROGRAM, memory, thread], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc's allocator")
@pytest.mark.parametrize("thread", ["main", "another"])
def test_what_an_update_freed_the_next_one_gets_without_the_kernel(thread: str) -> None:
    given_back, kept = page_faults("given back", thread), page_faults("kept", thread)
    assert given_back > 1000
    assert kept < given_back / 5
