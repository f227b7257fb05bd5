import subprocess
from pathlib import Path

import pytest

from tests.cluster.sweep.test_sweep import FILE, command
from tests.head_node import head_node
from tests.run_processes import ROOT


@pytest.mark.slow
def test_runs_are_tasks_of_a_cluster_that_is_there_with_its_own_token(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(FILE)
    with head_node(dashboard=False) as environment:
        found = subprocess.run(
            command(tmp_path, "--address", environment["RAY_ADDRESS"]),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert found.returncode == 0, found.stderr
    assert len(list((tmp_path / "out").glob("runs/*/*/*/evaluation.json"))) == 2
