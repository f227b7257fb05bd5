"""Scheduling niceness that holds for a process in a session of its own.

Invariant: without the kernel's autogroups, or the right to change one, it is the ordinary niceness.

Linux shares the processor equally among sessions first (sched_autogroup_enabled) and lets niceness count only within one, so a
niced service in a session of its own would take as much as all of training.
"""

import os
from contextlib import suppress
from pathlib import Path


def be_nice(level: int) -> None:
    """Add `level`, 0 to 19, to this process's niceness, and to its session's where it leads one."""
    if level:
        os.nice(level)
    if os.getsid(0) == os.getpid():
        set_session_niceness(os.getpid())


def set_session_niceness(leader: int) -> None:
    """Let the session that the process `leader` leads be as nice as this process."""
    with suppress(OSError):
        Path(f"/proc/{leader}/autogroup").write_text(str(os.nice(0)))
