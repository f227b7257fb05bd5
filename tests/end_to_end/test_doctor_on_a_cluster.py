"""`delphi doctor` beside a real Ray cluster: joined with its token, refused with another, too small for what is asked."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A head node of 4 CPUs with a home and a token of its own; the environment to talk to it."""
    home = Path(tempfile.mkdtemp(prefix="dd-", dir="/tmp"))  # short: Ray's sockets lie below it
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "HOME": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", "--num-cpus=4"]
    command += [f"--temp-dir={home}/ray", "--include-dashboard=false", "--object-store-memory=100000000"]
    start = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    head = subprocess.Popen(command, env=start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home)
    try:
        deadline = time.monotonic() + 60
        while not list(home.glob("ray/session_*/sockets/raylet*")):
            assert head.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield environment
    finally:
        head.terminate()
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        shutil.rmtree(home, ignore_errors=True)


def ray_finding(environment: dict[str, str], run_dir: Path, *settings: str) -> dict[str, Any]:
    arguments = ["--preset", "debug", "cluster.mode=connect", f"run_dir={run_dir}", *settings]
    command = [sys.executable, "-m", "cluster.cli", "doctor", "--json", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, cwd=ROOT)
    return next(finding for finding in json.loads(result.stdout)["checks"] if finding["check"] == "ray")


@pytest.mark.slow
def test_a_cluster_is_joined_measured_and_left(cluster: dict[str, str], tmp_path: Path) -> None:
    finding = ray_finding(cluster, tmp_path / "run")
    assert finding["status"] == "ok", finding
    assert "1 nodes, 4 CPU, 0 GPU; the run's parts fit" in finding["found"]
    finding = ray_finding(cluster, tmp_path / "run", "actors.num_workers=8", "learner.rollouts_per_batch=8")
    assert finding["status"] == "warning"
    assert "no room for 6 x worker (1 CPU)" in finding["found"], finding
    assert "actors.num_workers" in finding["advice"]
    finding = ray_finding({**cluster, "RAY_AUTH_TOKEN": "f" * 64}, tmp_path / "run")
    assert finding["status"] == "failed"
    assert "RAY_AUTH_TOKEN" in finding["advice"], finding
