"""What a test of a whole run leaves behind: nothing, whatever state it failed in."""

import subprocess
import sys
from pathlib import Path

from tests.run_processes import end_processes, processes_of, wait_until

RESTARTS_ITS_CHILD = """
import subprocess, sys
while True:
    child = [sys.executable, "-c", "import time; time.sleep(60)", sys.argv[1]]
    subprocess.Popen(child, start_new_session=True).wait()
"""


def test_nothing_of_a_run_is_left_though_it_starts_its_children_again(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    process = subprocess.Popen([sys.executable, "-c", RESTARTS_ITS_CHILD, str(tmp_path / "run")])
    wait_until(lambda: len(processes_of(tmp_path / "run")) == 2, process, tmp_path / "log")
    end_processes(tmp_path / "run")
    assert not processes_of(tmp_path / "run")
    assert process.wait(1) == -9
