"""Niceness counts between sessions, not only within one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_server.niceness import set_session_niceness

AUTOGROUP = Path("/proc/self/autogroup")
LEADER = """
from pathlib import Path
from llm_server.niceness import be_nice
be_nice(7)
import os
print(os.nice(0), Path("/proc/self/autogroup").read_text().split()[-1] if Path("/proc/self/autogroup").exists() else "none")
"""


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroups: ordinary niceness counts everywhere")
def test_a_session_is_as_nice_as_the_process_that_leads_it():
    before = AUTOGROUP.read_text().split()[-1]
    wanted = str(min(os.nice(0) + 7, 19))
    led = subprocess.run([sys.executable, "-c", LEADER], capture_output=True, text=True, start_new_session=True, check=True)
    assert led.stdout.split() == [wanted, wanted]
    in_ours = subprocess.run([sys.executable, "-c", LEADER], capture_output=True, text=True, check=True)
    assert in_ours.stdout.split() == [wanted, before], "a session that somebody else leads is left alone"


def test_a_session_that_is_gone_is_no_error():
    gone = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    gone.wait()
    set_session_niceness(gone.pid)
