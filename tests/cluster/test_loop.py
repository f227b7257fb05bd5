"""The training loop in this process: who may write into a run, and when it must not."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.inline import InlineWorkers
from cluster.loop import TrainingLoop
from cluster.run_directory import RunDirectory, begin_epoch, open_run
from cluster.wiring import build_pipeline
from configs.loading import load_config
from learner.update import StepResult


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[tuple[TrainingLoop, RunDirectory]]:
    """A loop of epoch 1 that would never end, and its run."""
    settings = ["env.id=tests.toy_environments:Corridor-v0", "policy.core=none", "policy.hidden_size=8", "total_env_steps=1000000000"]
    settings += [f"run_dir={tmp_path / 'run'}", "logging.interval_env_steps=100", "checkpoint.interval_env_steps=1000"]
    config = load_config(preset="debug", overrides=settings)
    run, run_epoch = open_run(config)
    pipeline = build_pipeline(config, run, run_epoch)
    workers = InlineWorkers(config, pipeline, run_epoch=run_epoch)
    yield TrainingLoop(config, run, run_epoch, workers, pipeline), run
    workers.close()
    pipeline.close()
    run.release()


def test_a_learner_whose_successor_has_begun_writes_nothing_and_ends(loops: tuple[TrainingLoop, RunDirectory]) -> None:
    loop, run = loops

    def successor_begins(figures: object) -> None:
        if loop.env_steps > 2000 and begun == []:
            begun.append(written(run))
            begin_epoch(run)

    begun: list[list[str]] = []
    with pytest.raises(RuntimeError, match="is at epoch 2, this learner is of epoch 1"):
        loop.run(successor_begins)
    assert begun[0][0], "it had written checkpoints before"
    assert written(run) == begun[0]


def test_an_epoch_that_cannot_be_read_for_a_while_ends_nothing(loops: tuple[TrainingLoop, RunDirectory]) -> None:
    loop, run = loops
    (run.path / "run_epoch").write_text("")
    loop.run(lambda figures: loop.stop() if loop.env_steps > 2000 else None)
    assert (run.checkpoints / "latest").exists()


def written(run: RunDirectory) -> list[str]:
    return [",".join(sorted(path.name for path in run.checkpoints.iterdir())), (run.path / "metrics.jsonl").read_text()]


def test_the_user_is_told_once_where_the_policy_keeps_not_looking(
    loops: tuple[TrainingLoop, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _ = loops
    information = iter([0.5, 0.001, 0.001, 0.2, *[0.001] * 6, 0.3, None])
    told: list[int] = []
    step = loop.learner.step

    def step_with(*arguments: Any) -> StepResult:
        result, figure = step(*arguments), next(information)
        metrics = {name: value for name, value in result.metrics.items() if name != "policy_state_information"}
        return replace(result, metrics=metrics if figure is None else metrics | {"policy_state_information": figure})

    def on_line(figures: Mapping[str, Any]) -> None:
        told.append(len([text for text in figures["problems"] if "hardly looks" in text]))
        if len(told) == 12:
            loop.stop()

    monkeypatch.setattr(loop.learner, "step", step_with)
    monkeypatch.setattr("cluster.loop.BLIND_UPDATES", 4)
    loop.run(on_line)
    assert told == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
