"""An environment that raises is rebuilt, nothing of its rollout is trained on, and nothing else is disturbed."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.captions import CaptionTracker
from actors.environments.factory import make_environment
from actors.inference import BatchedInference
from actors.policy import PolicyNet, snapshot
from actors.rollout import PER_STEP, CaptionReport, Rollout
from actors.worker import RolloutWorker
from cluster.launch import launch
from configs.loading import load_config
from configs.reward_schema import RewardConfig
from configs.schema import ActorsConfig, EnvConfig, LearnerConfig, PolicyConfig
from learner.stream import RolloutStream
from learner.update import Learner
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.faults.faulty_environments import OnceBroken
from tests.learner.toy_rollouts import RECALL_SPEC, SMALL_POLICY, random_rollout

pytestmark = pytest.mark.faults
NUM_ENVS, NUM_STEPS, BROKEN = 4, 10, 2
ONCE = EnvConfig(id="tests.faults.faulty_environments:OnceBroken-v0", max_episode_steps=7)
FAULTY = "env.id=tests.faults.faulty_environments:Faulty-v0"


@pytest.fixture
def make_worker() -> Iterator[Callable[..., RolloutWorker]]:
    workers: list[RolloutWorker] = []

    def make(config: EnvConfig, **options: Any) -> RolloutWorker:
        OnceBroken.made = 0
        config = dataclasses.replace(config, options=options)
        env = make_environment(config, num_envs=NUM_ENVS, run_seed=5, worker_index=0)
        net = PolicyNet(env.spec, PolicyConfig(hidden_size=16, core_size=16))
        actors = ActorsConfig(rollout_steps=NUM_STEPS, precision="fp32")
        inference = BatchedInference(net, env.spec, NUM_ENVS, actors)
        workers.append(RolloutWorker(env, inference, CaptionTracker(NUM_ENVS), actors, worker_id="0.0", seed=3))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def collect(worker: RolloutWorker, num: int) -> list[tuple[Rollout, CaptionReport]]:
    torch.manual_seed(0)
    weights = snapshot(PolicyNet(worker.env.spec, PolicyConfig(hidden_size=16, core_size=16)), (1, 0))
    return [worker.collect(weights, None) for _ in range(num)]


@pytest.mark.parametrize("at_step", [0, 3, NUM_STEPS - 1])
def test_only_the_rollout_of_the_environment_that_raised_is_lost(
    at_step: int, make_worker: Callable[..., RolloutWorker], record_recovery: Callable[..., None]
) -> None:
    healthy = collect(make_worker(ONCE, which=-1), 3)
    broken = collect(make_worker(ONCE, which=BROKEN, at_step=at_step), 3)
    assert [rollout.lost for rollout, _ in broken] == [(BROKEN,), (), ()]
    assert [rollout.num_steps for rollout, _ in broken] == [
        NUM_STEPS * (NUM_ENVS - 1),
        NUM_STEPS * NUM_ENVS,
        NUM_STEPS * NUM_ENVS,
    ]
    first = broken[0][0]
    assert first.environment_errors == 1
    assert "the level could not be drawn" in first.environment_error
    others = [i for i in range(NUM_ENVS) if i != BROKEN]
    for (one, _), (other, _) in zip(healthy, broken, strict=True):
        for name in PER_STEP:
            left, right = getattr(one, name)[:, others], getattr(other, name)[:, others]
            # Final values are computed for however many episodes are truncated in a step, and rounded accordingly.
            np.testing.assert_allclose(left, right, rtol=0, atol=1e-6 if name == "final_values" else 0, err_msg=name)
        for name, array in one.obs.items():
            np.testing.assert_array_equal(array[:, others], other.obs[name][:, others], err_msg=name)
    record_recovery(
        "an environment that raises", "it is rebuilt, its rollout dropped, all others are as without the fault", None
    )


def test_where_it_raised_an_episode_is_cut_and_the_next_begins_afresh(
    make_worker: Callable[..., RolloutWorker],
) -> None:
    (first, report), (second, _) = collect(make_worker(ONCE, which=BROKEN, at_step=3), 2)
    assert first.truncated[3, BROKEN]
    assert not first.terminated[3, BROKEN]
    assert first.caption_ids[3, BROKEN] == 0
    assert first.obs["position"][4, BROKEN, 0] == 1.0, "the next episode's first observation"
    assert all(episode.length in range(1, 8) for episode in (*first.episodes, *second.episodes))
    shown = {id_: int((first.caption_ids == id_).sum()) for id_ in report.counts}
    entered = next(id_ for id_, text in report.texts.items() if "enter" in text)
    assert shown[entered] == 0
    assert report.counts == shown, "captions of lost steps were seen all the same"


def test_one_that_raises_as_it_starts_is_tried_again_and_then_is_the_workers_failure(
    make_worker: Callable[..., RolloutWorker],
) -> None:
    worker = make_worker(ONCE, which=BROKEN, in_reset=True)
    (rollout, _), *_ = collect(worker, 1)
    assert rollout.lost == ()
    assert rollout.environment_errors == 1

    worker = make_worker(dataclasses.replace(ONCE, id="tests.faults.faulty_environments:Faulty-v0"), raise_chance=1.0)
    with pytest.raises(RuntimeError, match="the level could not be drawn"):
        collect(worker, 1)


def test_when_netHack_raises_all_games_of_the_worker_are_made_anew(
    make_worker: Callable[..., RolloutWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(EnvConfig(max_episode_steps=50))
    step, calls = worker.env._stepping.step, []

    def fail_once(actions: np.ndarray) -> Any:
        calls.append(actions)
        if len(calls) == 4:
            raise OSError("the engine is confused")
        return step(actions)

    monkeypatch.setattr(worker.env._stepping, "step", fail_once)
    (first, _), (second, _) = collect(worker, 2)
    assert first.lost == (0, 1, 2, 3)
    assert first.num_steps == 0
    assert first.environment_errors == 1
    assert second.lost == ()
    assert np.isfinite(second.extrinsic_rewards).all()
    assert second.obs["blstats"][0].any(axis=1).all()


def test_nothing_of_a_lost_environment_reaches_the_weights() -> None:
    def learn(*rollouts: Rollout) -> tuple[dict[str, Any], list[np.ndarray]]:
        config = LearnerConfig(learning_rate=3e-3, precision="fp32", device="cpu")
        learner = Learner(RECALL_SPEC, SMALL_POLICY, config, RewardConfig(), run_epoch=0, seed=1)
        result = learner.step(rollouts, PublishedReward.of(RewardTable.empty(0)))
        return learner.snapshot().weights, result.intrinsic

    whole = random_rollout(num_envs=4, seed=1)
    rubbish = {name: getattr(whole, name).copy() for name in ("extrinsic_rewards", "behaviour_values")}
    for array in rubbish.values():
        array[:, [1, 2]] = np.nan
    lost = dataclasses.replace(whole, **rubbish, lost=(1, 2))
    entirely = dataclasses.replace(random_rollout(num_envs=2, seed=2), lost=(0, 1))
    weights, intrinsic = learn(lost, entirely)
    expected, _ = learn(dataclasses.replace(whole, lost=(1, 2)).without_lost())
    for name, array in expected.items():
        np.testing.assert_array_equal(weights[name], array)
    trained, _ = learn(whole)
    assert any((trained[name] != expected[name]).any() for name in expected), (
        "the control: those columns would have mattered"
    )
    assert [array.shape[1] for array in intrinsic] == [4, 2], "episodes went on in all of them"


def test_a_rollout_without_any_whole_environment_fills_no_batch_and_keeps_its_place() -> None:
    stream = RolloutStream(LearnerConfig(rollouts_per_batch=2))
    rollouts = [
        random_rollout(sequence_number=n, policy_version=(1, 0), lost=(0, 1, 2) if n == 1 else ()) for n in range(3)
    ]
    assert stream.put(rollouts[0], (1, 0)) is None
    assert stream.put(rollouts[1], (1, 0)) is None
    batch = stream.put(rollouts[2], (1, 0))
    assert batch is not None
    assert [rollout.sequence_number for rollout in batch] == [0, 1, 2]


def test_a_run_counts_only_what_it_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        f"run_dir={tmp_path}/run",
        FAULTY,
        "env.options={raise_chance: 0.004}",
        "env.max_episode_steps=40",
        "total_env_steps=8000",
    ]
    small = [
        "policy.core=none",
        "policy.hidden_size=16",
        "logging.tensorboard=false",
        "logging.interval_env_steps=1",
        "reward_model.name=none",
        "learner.epochs=1",
        "learner.minibatches=1",
    ]
    assert launch(load_config(preset="debug", overrides=[*settings, *small, "logging.console=plain"])) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["environment_errors"] > 10
    whole = 8 * 16 * lines[-1]["learner_updates"]
    lost = whole - lines[-1]["env_steps"]
    assert 0 < lost <= 16 * lines[-1]["environment_errors"]
    assert lost % 16 == 0, "environments are lost for a whole rollout"
    assert capsys.readouterr().out.count("the level could not be drawn") == 1
    assert (tmp_path / "run" / "log.txt").read_text().count("Traceback") == 1


@pytest.mark.parametrize("chance", [1.0, 0.1])
def test_an_environment_that_raises_all_the_time_ends_the_run_with_its_error(
    chance: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        f"run_dir={tmp_path}/run",
        FAULTY,
        f"env.options={{raise_chance: {chance}}}",
        "logging.tensorboard=false",
    ]
    assert launch(load_config(preset="debug", overrides=[*settings, "reward_model.name=none", "policy.core=none"])) == 1
    error = capsys.readouterr().err
    assert "environment 'Faulty-v0' raised OSError in step: the level could not be drawn" in error
    assert ("cluster.max_environment_loss" in error) == (chance < 1.0)
