"""What a result was made with: commit, package versions, processor and memory.

Invariant: what cannot be found out is left out or None, never an error; imports nothing heavy.
"""

import contextlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("delphi-rl", "torch", "ray", "transformers", "nle", "minihack", "minigrid", "gymnasium", "numpy", "grpcio")


def commit() -> str | None:
    """The checkout's commit, marked `-dirty` where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def packages() -> dict[str, str]:
    """Versions of the packages that decide speed and results, of those that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, Any]:
    """The processor, how many cores this process may use, memory, and the load average over one minute."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = round(os.getloadavg()[0], 2)
    return {"processor": model, "cores": cores, "memory_gib": round(memory, 1), "load_average": load}
