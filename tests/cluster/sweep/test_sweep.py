"""`delphi sweep` with real runs on a Ray cluster of its own: stopped, continued, finished, and compared."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.sweep import compare, trial_process
from cluster.sweep.command import default_out, main
from tests.run_processes import ROOT, wait_until

FILE = """
title: Corridor
metric: return
episodes: 4
envs: 2
seeds: 1
settings:
  env: {id: "tests.toy_environments:Corridor-v0", captioner: message}
  policy: {core: none, hidden_size: 16}
  total_env_steps: 1024
  logging.interval_env_steps: 256
  checkpoint.interval_env_steps: 512
tasks:
  short: {preset: debug}
arms:
  none: {settings: {reward_model.name: none}}
  script: {settings: {service.script: "advance=1.0"}}
compare: [script]
"""


def command(folder: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "cluster.sweep.command",
        str(folder / "sweep.yaml"),
        "--out",
        str(folder / "out"),
        *options,
    ]


def sweep(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *options), cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_a_sweep_that_is_stopped_goes_on_to_the_same_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(FILE)
    log, done = tmp_path / "log", tmp_path / "out" / "runs" / "short"
    with log.open("w") as output:
        process = subprocess.Popen(
            command(tmp_path, "--jobs", "1"), cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until(lambda: list(done.glob("*/*/evaluation.json")), process, log)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(120) == 1
    finally:
        process.kill()
    assert "1 of 2 runs are not done; the same command continues" in log.read_text()
    finished = {file: file.read_bytes() for file in done.glob("*/*/evaluation.json")}

    again = sweep(tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"2 runs in {tmp_path / 'out'}: 1 done, 1 to do" in again.stderr
    assert len(list(done.glob("*/*/evaluation.json"))) == 2
    assert all(file.read_bytes() == content for file, content in finished.items()), "what was done is left alone"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [("none", 1), ("script", 1)]
    assert list(results["comparisons"]["script"]) == ["none"]
    assert "| script | " in (tmp_path / "out" / "results.md").read_text()

    (tmp_path / "sweep.yaml").write_text(FILE.replace("hidden_size: 16", "hidden_size: 8"))
    assert main([str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]) == 2
    complaint = capsys.readouterr().err
    assert "holds a run with other settings: policy.hidden_size: 16 -> 8. Give another --out" in complaint
    assert len(complaint.splitlines()) == 1


def test_a_run_that_fails_is_told_by_its_last_line(tmp_path: Path) -> None:
    config = tmp_path / "1.json"
    config.write_text(json.dumps({"env": {"id": "NoSuchGame-v0"}, "run_dir": str(tmp_path / "1")}))
    problem = trial_process.run_trial(str(config), 4, 2)
    assert problem is not None
    assert problem.startswith("ended with exit code 2: delphi train: ")
    assert "NoSuchGame" in problem
    assert problem.endswith(f"(more in {tmp_path / '1.log'})")
    nowhere = trial_process.run_trial(str(tmp_path / "2.json"), 4, 2)
    assert (
        nowhere == f"this node does not see {tmp_path / '2.json'}: --out must be on a file system that all nodes share"
    )


def test_listing_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(FILE)
    assert main([str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), "--list"]) == 0
    assert capsys.readouterr().out == "to do  short/none/1\nto do  short/script/1\n"
    assert not (tmp_path / "out").exists()
    assert compare.main([str(tmp_path / "out")]) == 2
    assert "has no sweep.yaml; give the folder that `delphi sweep` wrote" in capsys.readouterr().err


def test_numbers_that_cannot_be_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(FILE)
    for options, message in (
        (["--seeds", "0"], "--seeds: got 0, wanted at least 1"),
        (["--jobs", "-1"], "--jobs: got -1, wanted at least 0"),
        (["--jobs", "2", "--address", "auto"], "--jobs: got it with --address"),
    ):
        assert main([str(tmp_path / "sweep.yaml"), *options]) == 2
        assert message in capsys.readouterr().err


def test_two_sweep_files_of_one_folder_have_folders_of_their_own() -> None:
    assert default_out(Path("results/tasks/sweep.yaml")) == Path("runs/sweeps/tasks")
    assert default_out(Path("results/tasks/pilot.yaml")) == Path("runs/sweeps/tasks_pilot")
