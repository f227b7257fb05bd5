"""Captions reach the book whatever becomes of rollouts, learners and books."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.inline import InlineWorkers
from cluster.run.directory import RunDirectory
from cluster.wiring import build_pipeline
from configs.loading import load_config
from configs.schema import RunConfig
from learner.update import Learner
from reward_models.reward_pipeline import RewardPipeline


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    settings = [
        f"run_dir={tmp_path}",
        "env.id=tests.toy_environments:Corridor-v0",
        "env.options={length: 4}",
        "env.max_episode_steps=12",
        "service.script='advance=0.9'",
        "policy.core_size=8",
        "policy.hidden_size=8",
    ]
    return load_config(preset="debug", overrides=settings)


@pytest.fixture
def pipelines(config: RunConfig) -> Iterator[list[RewardPipeline]]:
    made = [build_pipeline(config, RunDirectory(Path(config.run_dir)), epoch) for epoch in (1, 2)]
    yield made
    for pipeline in made:
        pipeline.close()


def start(config: RunConfig, pipeline: RewardPipeline) -> InlineWorkers:
    workers = InlineWorkers(config, pipeline, run_epoch=1)
    learner = Learner(workers.spec, config.policy, config.learner, config.reward, run_epoch=1, seed=1)
    workers.publish(learner.snapshot())
    return workers


def unknown(pipeline: RewardPipeline, ids: np.ndarray) -> int:
    return int((~pipeline.latest_reward().main.look_up(ids)[1]).sum())


def test_a_dropped_rollout_leaves_no_caption_unknown(config: RunConfig, pipelines: list[RewardPipeline]) -> None:
    workers = start(config, pipelines[0])
    rollouts = [workers.take(0.0) for _ in range(5)]  # and nobody trains on them
    ids = np.unique(np.concatenate([rollout.caption_ids.ravel() for rollout in rollouts if rollout is not None]))
    assert len(ids) > 5
    assert unknown(pipelines[0], ids) == 0
    workers.close()


def test_a_new_book_learns_every_caption_that_the_old_one_had_acknowledged(
    config: RunConfig, pipelines: list[RewardPipeline]
) -> None:
    workers = start(config, pipelines[0])
    before = [workers.take(0.0) for _ in range(5)]
    ids = np.unique(np.concatenate([rollout.caption_ids.ravel() for rollout in before if rollout is not None]))
    workers._pipeline = pipelines[
        1
    ]  # the learner and the annotator were killed before any checkpoint; the worker lives on
    assert unknown(pipelines[1], ids) > 0
    for _ in range(2):  # one rollout to learn of the new book, one to send what it lacks
        workers.take(0.0)
    assert unknown(pipelines[1], ids) == 0
    workers.close()


def test_the_last_caption_of_an_episode_is_rewarded_at_its_own_step(
    config: RunConfig, pipelines: list[RewardPipeline]
) -> None:
    workers = start(config, pipelines[0])
    seen = 0
    for _ in range(10):
        rollout = workers.take(0.0)
        assert rollout is not None
        for t, b in np.argwhere(rollout.terminated):
            (caption,) = pipelines[0]._main._book.captions_of([rollout.caption_ids[t, b]]).values()
            assert caption.text == "You reach the treasure!"
            assert rollout.extrinsic_rewards[t, b] == 1.0
            seen += 1
    workers.close()
    assert seen
