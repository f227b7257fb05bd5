"""Checkpoints that were damaged or made by somebody else: the run goes on from the one before, and counts no step
twice."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.launch import launch
from configs.loading import load_config
from learner.checkpoint import load_latest

pytestmark = pytest.mark.faults
BATCH = 8 * 16
STEPS = BATCH * 3
"""Between checkpoints."""


def train(run_dir: Path, steps: int) -> int:
    settings = [
        f"run_dir={run_dir}",
        f"total_env_steps={steps}",
        "env.id=tests.toy_environments:Corridor-v0",
        "env.max_episode_steps=30",
        "service.script='advance=0.9'",
        "policy.core_size=16",
        "policy.hidden_size=16",
        "learner.epochs=1",
        "learner.minibatches=1",
        f"checkpoint.interval_env_steps={STEPS}",
        f"logging.interval_env_steps={STEPS}",
        "logging.console=plain",
        "logging.tensorboard=false",
    ]
    return launch(load_config(preset="debug", overrides=settings))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at STEPS and 2 * STEPS."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert train(run_dir, 2 * STEPS) == 0
    return run_dir


def cut_short(checkpoint: Path) -> None:
    weights = checkpoint / "learner.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def flip_a_bit(checkpoint: Path) -> None:
    weights = checkpoint / "learner.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)


def raise_version(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))


def lead_elsewhere(checkpoint: Path) -> None:
    """Everything but the loop's part is somebody else's, by a path that leads out of the folder."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    foreign = checkpoint.parent.parent / "elsewhere.json"
    shutil.move(checkpoint / "loop.json", foreign)
    manifest["files"]["../../elsewhere.json"] = manifest["files"].pop("loop.json")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("fault", "damage", "reason"),
    [
        ("the newest checkpoint cut short", cut_short, "bytes instead of"),
        ("one bit of the newest checkpoint flipped", flip_a_bit, "checksum of learner.safetensors does not match"),
        ("the newest checkpoint of another format version", raise_version, "format version 99, this program reads"),
        ("a hostile checkpoint whose manifest leads out of its folder", lead_elsewhere, "is not a checkpoint file"),
    ],
    ids=["truncated", "corrupt", "version", "hostile"],
)
def test_a_checkpoint_that_is_refused_costs_what_came_after_the_one_before_it(
    fault: str,
    damage: Callable[[Path], None],
    reason: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    record_recovery: Callable[..., None],
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config | {"run_dir": str(run_dir)}))
    newest = run_dir / "checkpoints" / f"step_{2 * STEPS}"
    damage(newest)
    started = time.monotonic()
    assert train(run_dir, 3 * STEPS) == 0
    seconds = time.monotonic() - started
    output = " ".join(capsys.readouterr().out.split())
    assert reason in output, output[-3000:]
    assert f"The one before it, of {STEPS:,} steps, is used" in output
    state = load_latest(run_dir / "checkpoints")
    assert state is not None
    assert state["loop"]["env_steps"] == 3 * STEPS
    assert state["learner"]["updates"] == 3 * STEPS // BATCH, "every step was learnt from once"
    assert [line["env_steps"] for line in read(run_dir / "metrics.jsonl")] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert [line["env_steps"] for line in read(run_dir / "metrics.superseded.jsonl")] == [2 * STEPS]
    assert json.loads((run_dir / "summary.json").read_text())["finished"]
    if damage is raise_version:
        aside = run_dir / "checkpoints" / f"set-aside-step_{2 * STEPS}" / "manifest.json"
        assert json.loads(aside.read_text())["version"] == 99, "what the other version can still use is not deleted"
    holds = "refused in one line that says why; the one before it is used, no step counts twice, the run finishes"
    record_recovery(fault, holds, seconds)


def test_where_no_checkpoint_is_left_the_run_is_refused_and_nothing_starts_over(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], record_recovery: Callable[..., None]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config | {"run_dir": str(run_dir)}))
    for checkpoint in (run_dir / "checkpoints").glob("step_*"):
        flip_a_bit(checkpoint)
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    assert train(run_dir, 3 * STEPS) == 1
    error = capsys.readouterr().err
    assert "no checkpoint in" in error
    assert "repair or move the folder to start anew" in error
    assert (run_dir / "metrics.jsonl").read_bytes() == metrics
    record_recovery(
        "every checkpoint corrupt", "refused, with what is wrong with each; nothing starts over by itself", None
    )


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
