"""The training loop in this process: who may write into a run and when it must not, and what is trained before there
are rewards."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.inline import InlineWorkers
from cluster.loop import TrainingLoop
from cluster.run.directory import RunDirectory, begin_epoch, open_run
from cluster.supervision import GiveUp
from cluster.wiring import build_pipeline
from configs.loading import load_config
from learner.update import StepResult
from reward_models.published import PublishedReward
from reward_models.reward_pipeline import RewardPipeline
from reward_models.table import RewardTable

SETTINGS = ["env.id=tests.toy_environments:Corridor-v0", "policy.core=none", "policy.hidden_size=8"]
SETTINGS += ["logging.interval_env_steps=100", "checkpoint.interval_env_steps=1000"]
BATCH = 128
"""Environment steps of one update."""
NO_REWARD = PublishedReward.of(RewardTable.empty())


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[tuple[TrainingLoop, RunDirectory]]:
    """A loop of epoch 1 that would never end, and its run."""
    config = load_config(
        preset="debug", overrides=[*SETTINGS, f"run_dir={tmp_path / 'run'}", "total_env_steps=1000000000"]
    )
    run, run_epoch = open_run(config)
    pipeline = build_pipeline(config, run, run_epoch)
    workers = InlineWorkers(config, pipeline, run_epoch=run_epoch)
    yield TrainingLoop(config, run, run_epoch, workers, pipeline), run
    workers.close()
    pipeline.close()
    run.release()


def test_a_learner_whose_successor_has_begun_writes_nothing_and_ends(loops: tuple[TrainingLoop, RunDirectory]) -> None:
    loop, run = loops

    def successor_begins(line: object) -> None:
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
    loop.run(lambda line: loop.stop() if loop.env_steps > 2000 else None)
    assert (run.checkpoints / "latest").exists()


def written(run: RunDirectory) -> list[str]:
    return [",".join(sorted(path.name for path in run.checkpoints.iterdir())), (run.path / "metrics.jsonl").read_text()]


class LateAnnotation:
    """A pipeline whose tables come only from the `come_at`-th look at the latest one on, `early` before; `on_look` is
    called at each, with its number."""

    def __init__(self, pipeline: RewardPipeline, come_at: float) -> None:
        self._pipeline, self._come_at = pipeline, come_at
        self.looks, self.early = 0, NO_REWARD
        self.on_look: Callable[[int], None] = lambda number: None

    def latest_reward(self) -> PublishedReward:
        self.looks += 1
        self.on_look(self.looks)
        return self._pipeline.latest_reward() if self.looks >= self._come_at else self.early

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


@contextmanager
def late(
    folder: Path, come_at: float, *settings: str, mode: str = "local"
) -> Iterator[tuple[TrainingLoop, LateAnnotation]]:
    """A loop of a run in `folder` over parts in this process; it takes itself for one of `mode`."""
    config = load_config(
        preset="debug", overrides=[*SETTINGS, f"run_dir={folder / 'run'}", f"total_env_steps={4 * BATCH}", *settings]
    )
    run, run_epoch = open_run(config)
    pipeline = build_pipeline(config, run, run_epoch)
    workers = InlineWorkers(config, pipeline, run_epoch=run_epoch)
    annotation = LateAnnotation(pipeline, come_at)
    yield (
        TrainingLoop(replace(config, cluster=replace(config.cluster, mode=mode)), run, run_epoch, workers, annotation),
        annotation,
    )
    workers.close()
    pipeline.close()
    run.release()


def test_training_begins_with_the_first_table_where_it_is_to_be_waited_for(tmp_path: Path) -> None:
    with late(tmp_path, 6, "annotator.wait_for_first_table_s=3600", "learner.rollouts_per_batch=2") as (
        loop,
        annotation,
    ):
        seen: list[tuple[str | None, int]] = []
        annotation.on_look = lambda number: seen.append((loop.progress()["waiting"], loop.learner.policy_version[1]))
        taken: list[int] = []
        take = loop.workers.take
        monitored = lambda timeout_s: (taken.append(annotation.looks), take(timeout_s))[1]  # noqa: E731
        loop.workers.take = monitored  # type: ignore[method-assign]
        summary = loop.run()
    assert [updates for _, updates in seen[:6]] == [0] * 6, "nothing is trained before it came"
    words = {waiting for waiting, _ in seen[1:6]}
    assert words == {"the first reward table (annotator.wait_for_first_table_s = 3600 s at most)"}
    assert {waiting for waiting, _ in seen[6:]} == {None}
    assert taken[:3] == [0, 0, 7], "no more than the first batch is taken meanwhile"
    assert summary["steps_without_table_fraction"] == 0
    assert summary["rollouts_dropped_stale"] == 0
    assert summary["env_steps"] == 4 * BATCH, "the held batch is trained on"


def test_the_zeros_of_a_main_term_that_pays_nothing_are_no_first_table(tmp_path: Path) -> None:
    settings = "annotator.wait_for_first_table_s=3600", "reward_model.name=none", "terms.news={model: {name: counts}}"
    with late(tmp_path, 4, *settings) as (loop, annotation):
        zeros = RewardTable.build(np.arange(1, 3, dtype=np.uint64), np.zeros(2), (1, 1))
        annotation.early = PublishedReward(tables={"main": zeros, "news": RewardTable.empty()})
        trained_at: list[int] = []
        summary = loop.run(lambda line: trained_at.append(annotation.looks))
    assert trained_at[0] > 4
    assert summary["steps_without_table_fraction"] == 0


def test_a_stop_request_ends_the_wait_and_nothing_is_trained(tmp_path: Path) -> None:
    with late(tmp_path, float("inf"), "annotator.wait_for_first_table_s=3600") as (loop, annotation):
        annotation.on_look = lambda number: loop.stop() if number == 3 else None
        summary = loop.run()
    assert (summary["env_steps"], summary["learner_updates"], summary["finished"]) == (0, 0, False)
    assert summary["steps_without_table_fraction"] is None
    assert loop.progress()["waiting"] is None
    with late(tmp_path, 4, "annotator.wait_for_first_table_s=3600") as (loop, _):
        summary = loop.run()
    assert (summary["finished"], summary["steps_without_table_fraction"]) == (True, 0), "it waits again"


def test_where_no_table_comes_in_time_training_begins_without_one_and_says_so(tmp_path: Path) -> None:
    lines: list[Mapping[str, Any]] = []
    with late(tmp_path, float("inf"), "annotator.wait_for_first_table_s=0.2") as (loop, _):
        summary = loop.run(lines.append)
    assert summary["steps_without_table_fraction"] == 1.0
    assert {line["notice"] for line in lines} == {
        "no reward table came within annotator.wait_for_first_table_s = 0.2 s: training begins without one"
    }


@pytest.mark.parametrize(("mode", "limit_s"), [("local", 0), ("inline", 3600)])
def test_by_default_and_in_turns_nothing_is_waited_for_and_the_share_without_a_table_is_kept_over_a_resume(
    mode: str, limit_s: int, tmp_path: Path
) -> None:
    setting = f"annotator.wait_for_first_table_s={limit_s}"
    with late(tmp_path, 4, setting, mode=mode) as (loop, annotation):  # a look per update: three updates before it
        assert loop.run()["steps_without_table_fraction"] == 0.75
        assert annotation.looks == 4
    with late(tmp_path, 1, setting, f"total_env_steps={8 * BATCH}", mode=mode) as (loop, _):
        lines: list[Mapping[str, Any]] = []
        assert loop.run(lines.append)["steps_without_table_fraction"] == 3 / 8
    assert lines[0]["steps_without_table_fraction"] == 3 / 5


def test_a_run_without_rewards_of_a_model_waits_for_no_table_and_counts_none(tmp_path: Path) -> None:
    with late(tmp_path, float("inf"), "annotator.wait_for_first_table_s=3600", "reward_model.name=none") as (loop, _):
        assert loop.run()["steps_without_table_fraction"] is None


def test_the_user_is_told_once_where_the_policy_keeps_not_looking(
    loops: tuple[TrainingLoop, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _ = loops
    information = iter([0.5, 0.001, 0.001, 0.2, *[0.001] * 6, 0.3, None])
    told: list[int] = []
    step = loop.learner.step

    def step_with(*arguments: Any) -> StepResult:
        result, value = step(*arguments), next(information)
        metrics = {name: value for name, value in result.metrics.items() if name != "policy_state_information"}
        return replace(result, metrics=metrics if value is None else metrics | {"policy_state_information": value})

    def on_line(line: Mapping[str, Any]) -> None:
        told.append(len([text for text in line["problems"] if "hardly uses" in text]))
        if len(told) == 12:
            loop.stop()

    monkeypatch.setattr(loop.learner, "step", step_with)
    monkeypatch.setattr("cluster.supervision.BLIND_UPDATES", 4)
    loop.run(on_line)
    assert told == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0]


class Clock:
    """What the loop takes for the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("cluster.loop.time", SimpleNamespace(monotonic=lambda: self.now))

    def advance(self, seconds: float) -> None:
        self.now += seconds


def record_shares(loop: TrainingLoop, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Filled with the share of the run done that each update is told, by which the learning rate falls."""
    shares: list[float] = []
    step = loop.learner.step
    monkeypatch.setattr(
        loop.learner, "step", lambda rollouts, table, share: (shares.append(share), step(rollouts, table, share))[1]
    )
    return shares


def test_time_ends_a_run_as_its_steps_do_and_that_of_earlier_starts_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    settings = ["max_time_s=100", "total_env_steps=1000000000"]
    with late(tmp_path, 0, *settings) as (loop, _):
        summary = loop.run(lambda line: (clock.advance(10), loop.stop() if line["env_steps"] == 4 * BATCH else None))
    assert (summary["env_steps"], summary["finished"], summary["time_s"]) == (4 * BATCH, False, 40)
    clock.advance(1000)  # between two starts it does not count
    with late(tmp_path, 0, *settings) as (loop, _):
        summary = loop.run(lambda line: clock.advance(10))
    assert (summary["env_steps"], summary["finished"], summary["ended_by"]) == (10 * BATCH, True, "max_time_s")
    assert summary["time_s"] == 100
    with late(tmp_path, 0, *settings) as (loop, _):
        again = loop.run()
    assert (again["env_steps"], again["finished"]) == (10 * BATCH, True), (
        "as with total_env_steps, there is nothing left to do"
    )


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        (["max_time_s=100", "total_env_steps=1000000000"], [0, *((10 * n / 100 - 0.05) / 0.95 for n in range(1, 10))]),
        (["max_time_s=100000", f"total_env_steps={4 * BATCH}"], [0, 0.25, 0.5, 0.75]),
        (["max_time_s=0", f"total_env_steps={4 * BATCH}"], [0, 0.25, 0.5, 0.75]),
    ],
)
def test_the_learning_rate_falls_with_what_ends_the_run(
    settings: list[str], shares: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with late(tmp_path, 0, *settings) as (loop, _):
        told = record_shares(loop, monkeypatch)
        loop.run(lambda line: clock.advance(10))
    assert told == pytest.approx(shares, abs=1e-6)


def test_time_ends_every_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with late(tmp_path / "hung", 0, "max_time_s=30") as (loop, _):
        monkeypatch.setattr(
            loop.workers, "take", lambda timeout_s: clock.advance(timeout_s)
        )  # workers that give nothing
        summary = loop.run()
    assert (summary["env_steps"], summary["finished"]) == (0, True)
    with late(tmp_path / "table", float("inf"), "max_time_s=30", "annotator.wait_for_first_table_s=3600") as (
        loop,
        annotation,
    ):
        annotation.on_look = lambda number: clock.advance(1)
        summary = loop.run()
    assert (summary["env_steps"], summary["finished"]) == (0, True)


def poison(loop: TrainingLoop, monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool]) -> None:
    """Let the rewards of the updates that `is_bad` names be no numbers."""
    take, taken = loop.workers.take, [0]

    def poisoned(timeout_s: float) -> Any:
        rollout = take(timeout_s)
        assert rollout is not None
        taken[0] += 1
        return (
            replace(rollout, extrinsic_rewards=np.full_like(rollout.extrinsic_rewards, np.nan))
            if is_bad(taken[0])
            else rollout
        )

    monkeypatch.setattr(loop.workers, "take", poisoned)


def test_a_run_in_which_every_update_is_skipped_fails(
    loops: tuple[TrainingLoop, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, run = loops
    poison(loop, monkeypatch, lambda number: number > 2)
    with pytest.raises(GiveUp, match="all of the last 32 updates were skipped") as failed:
        loop.run()
    assert loop.env_steps == 34 * BATCH
    assert "\n" not in str(failed.value)
    assert f'"env_steps": {34 * BATCH}' in (run.path / "metrics.jsonl").read_text().splitlines()[-1]


def test_a_short_run_in_which_every_update_is_skipped_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(tmp_path, 0) as (loop, _):
        poison(loop, monkeypatch, lambda number: True)
        with pytest.raises(GiveUp, match="every update was skipped"):
            loop.run()


def test_the_user_is_told_where_half_of_the_updates_are_skipped(
    loops: tuple[TrainingLoop, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _ = loops
    poison(
        loop, monkeypatch, lambda number: number > 10 and number % 4 != 0
    )  # three quarters of them, from the 11th on
    told: list[bool] = []

    def on_line(line: Mapping[str, Any]) -> None:
        told.append(any("half of the last 32 updates were skipped" in text for text in line["problems"]))
        if len(told) == 50:
            loop.stop()

    assert not loop.run(on_line)["finished"]
    assert (any(told[:30]), told[31:]) == (False, [True] * 19)
