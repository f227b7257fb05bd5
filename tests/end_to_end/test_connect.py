"""`ray job submit` on a cluster started on this machine: the job trains, succeeds, and submitted again continues."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A head node with a home, token and ports of its own; the environment to talk to it."""
    home = Path(tempfile.mkdtemp(prefix="dc-", dir="/tmp"))  # short: Ray's sockets lie below it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    }
    ports = [free_port(), free_port(), free_port()]
    names = ("--port", "--dashboard-port", "--dashboard-agent-listen-port")
    options = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    command = [RAY, "start", "--head", "--num-cpus=4", f"--temp-dir={home}/ray", "--object-store-memory=200000000", "--block", *options]
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{ports[1]}"
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home)
    try:
        yield environment
    finally:
        head.terminate()
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        shutil.rmtree(home, ignore_errors=True)


def submit(environment: dict[str, str], run_dir: Path, steps: int) -> str:
    options = ["env.max_episode_steps=200", "actors.envs_per_worker=4", "service.engine=scripted", "service.store=memory"]
    job = ["python", "-m", "cluster.train", "--preset", "nethack_score", "cluster.mode=connect", f"run_dir={run_dir}"]
    command = [RAY, "job", "submit", "--working-dir", str(ROOT), "--", *job, f"total_env_steps={steps}", *options]
    for _ in range(60):
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd="/")
        if "Failed to connect" not in result.stdout + result.stderr:  # the head is still starting
            break
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout


def test_a_submitted_job_trains_and_submitted_again_continues(cluster: dict[str, str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert "succeeded" in submit(cluster, run_dir, 10_000)
    first = json.loads((run_dir / "summary.json").read_text())
    assert first["finished"]
    assert first["env_steps"] >= 10_000
    assert "continues (epoch 2)" in submit(cluster, run_dir, 20_000)
    second = json.loads((run_dir / "summary.json").read_text())
    assert second["env_steps"] >= 20_000
    assert second["annotations_total"] >= first["annotations_total"] > 0
