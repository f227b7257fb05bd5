"""`ray job submit` on a cluster started on this machine: the job trains, stops when told, and submitted again continues
and succeeds."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.head_node import head_node
from tests.run_processes import lines

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """The environment to talk to a head node that takes jobs and is as small as a laptop."""
    with head_node(dashboard=True, num_cpus=2) as environment:
        yield environment


JOB = ["python", "-m", "cluster.train", "--preset", "nethack_score", "cluster.mode=connect"]
SETTINGS = [
    "env.max_episode_steps=200",
    "logging.interval_env_steps=500",
    "actors.envs_per_worker=4",
    "policy.hidden_size=32",
    "policy.core_size=32",
    "learner.epochs=1",
    "learner.minibatches=1",
    "annotator.wait_for_first_table_s=60",
    "service.engine=scripted",
    "service.store=memory",
    "evaluation.at_end=false",
]


def ray_job(environment: dict[str, str], *arguments: str) -> str:
    """Output of `ray job ...` from a directory outside the checkout."""
    command = [RAY, "job", *arguments]
    for _ in range(60):
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd="/")
        if not any(words in result.stdout + result.stderr for words in ("Failed to connect", "No available agent")):
            break
        time.sleep(1)  # the head is still starting
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout


def submit(environment: dict[str, str], run_dir: Path, steps: int, *settings: str, options: Sequence[str] = ()) -> str:
    files = ["--working-dir", str(ROOT), "--runtime-env", str(ROOT / "cluster" / "runtime_env.yaml")]
    job = [*JOB, f"run_dir={run_dir}", f"total_env_steps={steps}", *SETTINGS, *settings]
    return ray_job(environment, "submit", *options, *files, "--", *job)


def test_a_submitted_job_that_is_stopped_half_way_continues_when_it_is_submitted_again(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    submit(cluster, run_dir, 10**9, options=["--no-wait", "--submission-id", "first"])
    deadline = time.monotonic() + 240
    while not any((line["env_steps"] or 0) >= 1_000 for line in lines(run_dir)):
        assert time.monotonic() < deadline, ray_job(cluster, "logs", "first")[-3000:]
        time.sleep(0.3)
    ray_job(cluster, "stop", "first")  # waits until it has stopped
    stopped = json.loads(
        (run_dir / "summary.json").read_text()
    )  # in time for the last checkpoint, which Ray's three seconds are not
    assert not stopped["finished"]
    assert stopped["env_steps"] >= 1_000
    goal = stopped["env_steps"] + 6_000  # in which the second replica comes up, too
    output = submit(cluster, run_dir, goal, "cluster.service_replicas=2")  # which speak TLS here, and want a token
    assert "continues (epoch 2)" in output
    assert (
        "the parts ask for 3.5 CPU, more than the cluster has or will get: each gets its share, 1 x learner (0.57 CPU)"
        in output
    )
    assert "succeeded" in output
    second = json.loads((run_dir / "summary.json").read_text())
    assert second["finished"]
    assert second["env_steps"] >= goal
    assert second["annotations_total"] > stopped["annotations_total"] > 0
    assert any(line["annotation_replicas_up"] == 2 for line in lines(run_dir))
    assert not any((run_dir / "credentials").iterdir())  # they went with the run
    by_epoch = [line["env_steps"] for line in lines(run_dir)]
    assert by_epoch == sorted(by_epoch)  # it began where it had stopped
    assert (run_dir / "log.txt").read_text().count(
        f"resumed at {stopped['env_steps']} environment steps (0 metric lines superseded)"
    ) == 1
