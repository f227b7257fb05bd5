"""The training loop in this process: who may write into a run, and when it must not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.inline import InlineWorkers
from cluster.loop import TrainingLoop
from cluster.run_directory import RunDirectory, begin_epoch, open_run
from cluster.wiring import build_pipeline
from configs.loading import load_config


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
