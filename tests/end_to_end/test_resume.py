"""Stopping and starting again changes nothing but the run epoch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.launch import launch
from cluster.run.directory import find_run
from cluster.run.stage_timing import LEARNER_STAGES, WORKER_STAGES
from configs.loading import load_config
from learner.checkpoint import load_latest, save_checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 8 * 16 * 6
"""Six updates of 8 environments and 16 steps."""


def train(run_dir: Path, steps: int, *overrides: str) -> dict:
    settings = [
        f"run_dir={run_dir}",
        f"total_env_steps={steps}",
        "env.id=tests.toy_environments:Corridor-v0",
        "env.options={length: 6, slip: 0.2}",
        "env.max_episode_steps=30",
        "service.script='advance=0.9'",
        "annotator.labels_per_turn=3",
        "policy.core_size=16",
        "policy.hidden_size=16",
        "learner.epochs=1",
        "learner.minibatches=2",
        f"logging.interval_env_steps={STEPS}",
        "logging.console=quiet",
        "logging.tensorboard=false",
        *overrides,
    ]
    assert launch(load_config(preset="debug", overrides=settings)) == 0
    state = load_latest(run_dir / "checkpoints")
    assert state is not None
    return state


def differences(a: object, b: object, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys(), path
        return [line for key in a for line in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for index in range(len(a)) for line in differences(a[index], b[index], f"{path}/{index}")]
    if isinstance(a, torch.Tensor | np.ndarray):
        same = torch.equal(torch.as_tensor(a).nan_to_num(-1), torch.as_tensor(b).nan_to_num(-1))
    else:
        same = json.dumps(a) == json.dumps(b)
    return [] if same else [f"{path}: {a!r} != {b!r}"]


TIMES_AND_EPOCHS = (
    "seconds",
    "time_s",
    "checkpoint_age_s",
    "_per_s",
    "run_epoch",
    "book_epoch",
    *(f"worker_{stage}_fraction" for stage in (*WORKER_STAGES, "idle")),
    *(f"learner_{stage}_fraction" for stage in (*LEARNER_STAGES, "other")),
    "annotation_age_s",
    "newest_reports",
    "reward_version",
    "annotator_up",
)
"""What a clock, the number of starts, or the process of the moment decides."""


EXPERIMENTS = {
    "two workers": [
        "actors.num_workers=2",
        "learner.rollouts_per_batch=2",
        "learner.epochs=2",
        "learner.minibatches=4",
    ],
    "classification": [
        "reward_model.name=classification",
        "reward_model.steps_per_turn=5",
        "reward_model.batch_size=8",
        "annotator.policy=uncertainty",
    ],
    "ranking": [
        "reward_model.name=ranking",
        "reward_model.steps_per_turn=5",
        "reward_model.batch_size=4",
        "reward_model.warmup_labels=20",
    ],
    "embedding": [
        "reward_model.name=embedding",
        "reward_model.embedding=bag-of-words",
        "reward_model.goals=[You advance to cell 2, You advance to cell 3, treasure]",
        "reward_model.goal_once_per_episode=true",
        "actors.num_workers=2",
        "learner.rollouts_per_batch=2",
        "reward.max_intrinsic_share=0.2",
        "archive.keep=true",
        "archive.max_episodes=3",
    ],
    "permuted": ["reward_model.permute=true", "annotator.max_labels=9"],
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_training_2n_equals_training_n_stopping_and_training_n(name: str, tmp_path: Path) -> None:
    options = EXPERIMENTS[name]
    whole = train(tmp_path / "whole", 2 * STEPS, *options)
    train(tmp_path / "halves", STEPS, *options)
    halves = train(tmp_path / "halves", 2 * STEPS, *options)
    found = [
        line for line in differences(whole, halves) if not any(word in line.split(":")[0] for word in TIMES_AND_EPOCHS)
    ]
    assert not found, found[:20]
    lines = [json.loads(line) for line in (tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()]
    assert [line["env_steps"] for line in lines] == [STEPS, 2 * STEPS]


def test_a_run_may_go_on_in_another_mode(tmp_path: Path) -> None:
    state = train(tmp_path / "run", STEPS)
    state["workers"] = {"collected_steps": STEPS}  # as a run on Ray leaves it
    state["annotation"] = {}
    state["learner"]["run_epoch"] = 1
    save_checkpoint(tmp_path / "run" / "checkpoints", STEPS, state, keep=3)
    assert train(tmp_path / "run", 2 * STEPS)["loop"]["env_steps"] == 2 * STEPS


def test_the_comparison_sees_a_difference(tmp_path: Path) -> None:
    one = train(tmp_path / "one", STEPS)
    other = train(tmp_path / "other", STEPS, "seed=2")
    assert any(
        line.startswith("/learner/weights") for line in differences(one["learner"], other["learner"], "/learner")
    )


def test_environments_that_cannot_save_themselves_start_new_episodes_and_the_rest_goes_on(tmp_path: Path) -> None:
    options = ("env.id=tests.toy_environments:ForgetfulCorridor-v0",)
    before = train(tmp_path / "run", STEPS, *options)
    after = train(tmp_path / "run", 2 * STEPS, *options)
    assert after["learner"]["updates"] == 2 * before["learner"]["updates"]
    assert after["loop"]["env_steps"] == 2 * STEPS
    assert after["metrics"]["episodes_total"] > before["metrics"]["episodes_total"]


def start(run_dir: Path, steps: int) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "cluster.train",
        "--preset",
        "debug",
        f"run_dir={run_dir}",
        f"total_env_steps={steps}",
    ]
    command += [
        "env.id=tests.toy_environments:Corridor-v0",
        "env.max_episode_steps=30",
        "policy.core_size=16",
        "policy.hidden_size=16",
        "learner.epochs=1",
        "learner.minibatches=1",
        "logging.interval_env_steps=1",
        "logging.console=plain",
        "logging.tensorboard=false",
        "checkpoint.interval_env_steps=0",
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, process: subprocess.Popen, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[0])
        time.sleep(0.05)


def test_a_signal_checkpoints_and_the_same_command_continues(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(run_dir, 10**9)
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and (run_dir / "metrics.jsonl").stat().st_size > 0, process)
    process.send_signal(signal.SIGSTOP)  # stopped it holds its lock, and leaves the processor to the other
    second = subprocess.run(
        [sys.executable, "-m", "cluster.train", "--preset", "debug", f"run_dir={run_dir}", "total_env_steps=100000000"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert second.returncode == 2
    assert "in use by process" in second.stderr
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    run, _ = find_run(str(run_dir))
    stopped = json.loads(run.summary.read_text())
    assert not stopped["finished"]
    state = load_latest(run.checkpoints)
    assert state is not None
    assert state["loop"]["env_steps"] == stopped["env_steps"]
    process = start(run_dir, stopped["env_steps"] + 1000)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert json.loads(run.summary.read_text())["env_steps"] >= stopped["env_steps"] + 1000
    assert (run.path / "run_epoch").read_text() == "2\n"


def test_lines_and_partial_checkpoints_of_a_killed_run_do_not_disturb_its_successor(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(run_dir, STEPS)
    lines_before = (run_dir / "metrics.jsonl").read_text()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"env_steps": STEPS + 5}) + "\n")
    os.makedirs(run_dir / "checkpoints" / "step_99999")
    train(run_dir, 2 * STEPS)
    assert (run_dir / "metrics.jsonl").read_text().startswith(lines_before)
    assert json.loads((run_dir / "metrics.superseded.jsonl").read_text())["env_steps"] == STEPS + 5


def test_a_run_from_before_stretched_bounds_goes_on_where_nothing_would_be_stretched(tmp_path: Path) -> None:
    train(tmp_path / "run", STEPS)
    file = tmp_path / "run" / "config.json"
    saved = json.loads(file.read_text())
    del saved["env"]["stretch_bounds"]
    file.write_text(json.dumps(saved))
    train(tmp_path / "run", 2 * STEPS)
