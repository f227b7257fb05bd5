"""`delphi doctor` beside a real Ray cluster: joined with its token, refused with another, too small for what is
asked."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.head_node import head_node

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """The environment to talk to a head node of 4 CPUs."""
    with head_node(dashboard=False) as environment:
        yield environment


def ray_finding(environment: dict[str, str], run_dir: Path, *settings: str) -> dict[str, Any]:
    arguments = ["--preset", "debug", "cluster.mode=connect", f"run_dir={run_dir}", *settings]
    command = [sys.executable, "-m", "cluster.cli", "doctor", "--json", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, cwd=ROOT)
    return next(result for result in json.loads(result.stdout)["checks"] if result["check"] == "ray")


@pytest.mark.slow
def test_a_cluster_is_joined_measured_and_left(cluster: dict[str, str], tmp_path: Path) -> None:
    result = ray_finding(cluster, tmp_path / "run")
    assert result["status"] == "ok", result
    assert "1 nodes, 4 CPU, 0 GPU; all parts fit" in result["found"]
    many = ["actors.num_workers=8", "learner.rollouts_per_batch=8"]
    result = ray_finding(cluster, tmp_path / "run", *many)
    assert result["status"] == "ok", result
    assert "the parts ask for 9.5 CPU, more than the cluster has or will get" in result["found"]
    result = ray_finding(cluster, tmp_path / "run", "cluster.learner_gpus=1")
    assert result["status"] == "failed", result
    assert "no room for 1 x learner (1 CPU, 1 GPU)" in result["found"]
    result = ray_finding(cluster, tmp_path / "run", *many, "cluster.more_nodes=expected")
    assert result["status"] == "warning"
    assert "no room for 6 x worker (1 CPU)" in result["found"], result
    assert "actors.num_workers" in result["advice"]
    result = ray_finding({**cluster, "RAY_AUTH_TOKEN": "f" * 64}, tmp_path / "run")
    assert result["status"] == "failed"
    assert "RAY_AUTH_TOKEN" in result["advice"], result
