"""A sheet of goals to a worker on a real Ray, and what it did with it back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_worker_and_its_inference_actor_pursue_the_goals_that_they_were_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.cluster.on_ray.goals_on_ray", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == dict.fromkeys(("without", "two", "counted"), True)
