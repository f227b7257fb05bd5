"""A Ray cluster of one head node on this machine, guarded by a token, with a home and ports of its own."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOKEN = "0123456789abcdef" * 4
START_LIMIT_S = 120.0


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def head_node(*, dashboard: bool, num_cpus: int = 4) -> Iterator[dict[str, str]]:
    """So many CPUs, and where asked for a dashboard, which takes jobs; the environment to talk to it. Nothing is left
    of it at the end."""
    home = Path(tempfile.mkdtemp(prefix="dc-", dir="/tmp"))  # short: Ray's sockets lie below it
    ports = [free_port(), free_port(), free_port()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",  # Ray's 30 are too few on a machine that has other work
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    names = ("--port", "--dashboard-port", "--dashboard-agent-listen-port")
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        f"--num-cpus={num_cpus}",
        f"--temp-dir={home}/ray",
    ]
    command += ["--object-store-memory=200000000", f"--include-dashboard={str(dashboard).lower()}"]
    command += [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while not list(home.glob("ray/session_*/sockets/raylet*")):
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("Ray's head node did not start")
            time.sleep(0.2)
        address = (
            {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports[1]}"}
            if dashboard
            else {"RAY_ADDRESS": f"127.0.0.1:{ports[0]}"}
        )
        yield environment | address
    finally:
        head.terminate()
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        shutil.rmtree(home, ignore_errors=True)
