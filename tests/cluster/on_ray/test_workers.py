"""What becomes of workers that die, hang, or cannot be reached, by a clock and actors that the test plays."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError

from cluster.on_ray import slot
from cluster.on_ray import workers as ray_workers
from cluster.on_ray.failures import ProcessId
from cluster.on_ray.placement import Request
from cluster.on_ray.workers import SUSPECT_INTERVAL_S
from cluster.supervision import GiveUp
from configs.schema import ActorsConfig, ClusterConfig, RunConfig
from tests.cluster.on_ray.played_ray import Call, PlayedRay
from tests.learner.toy_rollouts import random_rollout

UNAVAILABLE = ActorUnavailableError("no answer", b"a" * 16)
TIMEOUT_S = 60.0


class PlayedWorker:
    """Answers `hello` at once and `collect` with a rollout, unless the test says otherwise."""

    def __init__(self, rollout: Any) -> None:
        self.hello_answer: Any = ProcessId("node", "host", 7)
        self.rollout = rollout
        self.hellos, self.killed = 0, False
        self.hello = SimpleNamespace(remote=self.say_hello)
        self.given_goals: list[Any] = []
        self.collect = SimpleNamespace(remote=self._collect)

    def _collect(self, snapshot: Any, acknowledgement: Any, goals: Any) -> list[Call]:
        self.given_goals.append(goals)
        return [Call(self, "rollout"), Call(self, "report")]

    def say_hello(self) -> Call:
        self.hellos += 1
        return Call(self, "hello_answer")


class Stage(PlayedRay):
    """One worker after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
        super().__init__(monkeypatch, (slot, ray_workers))
        self.started: list[PlayedWorker] = []
        self.rollout: Any = random_rollout()
        """What workers that are started from now on give."""
        config = RunConfig(
            run_dir=str(run_dir),
            actors=ActorsConfig(num_workers=1, rollouts_in_flight=1),
            cluster=ClusterConfig(
                mode="local", worker_timeout_s=TIMEOUT_S, placement_timeout_s=1000, max_worker_restarts=2
            ),
        )
        self.supervise(config, Request(cpus=1, gpus=0, count=1))

    def start(self, *_: Any, **__: Any) -> PlayedWorker:
        self.started.append(PlayedWorker(self.rollout))
        return self.started[-1]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)


def test_a_worker_that_waits_for_resources_has_no_time_limit(stage: Stage) -> None:
    stage.started[0].hello_answer = None
    assert stage.take_until(3 * TIMEOUT_S) == 0
    assert stage.workers.waiting == "1 of 1 workers to start (1 CPU each)"
    stage.started[0].hello_answer = ProcessId("node", "host", 7)
    assert stage.take_until(1) > 0
    assert stage.workers.waiting is None
    assert len(stage.started) == 1


def test_too_few_workers_within_the_time_for_placement_end_the_run(stage: Stage) -> None:
    stage.started[0].hello_answer = None
    with pytest.raises(GiveUp, match=r"0 workers were up within cluster.placement_timeout_s = 1000 s, wanted 1"):
        stage.take_until(1001)


def test_a_dead_worker_has_a_successor_of_the_next_incarnation(stage: Stage) -> None:
    stage.take_until(1)
    stage.started[0].rollout = ActorDiedError()
    stage.take_until(1)
    assert (len(stage.started), stage.started[0].killed) == (2, True)
    assert stage.workers._slots[0].worker_id == "0.1-1"
    assert stage.take_until(1) > 0
    metrics = stage.workers.metrics()
    assert (metrics["worker_restarts"], metrics["workers_running"]) == (1, 1)


def test_the_newest_goals_are_put_once_and_go_with_every_call_and_to_a_successor(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[Any] = []
    monkeypatch.setattr(ray_workers.ray, "put", lambda what: (put.append(what), what)[1])
    stage.take_until(1)
    assert set(stage.started[0].given_goals) == {None}
    for sheet in ("sheet 1", "sheet 2"):
        stage.workers.publish_goals(sheet)  # type: ignore[arg-type]
        stage.take_until(1)
        assert stage.started[0].given_goals[-1] == sheet
    stage.started[0].rollout = ActorDiedError()
    stage.take_until(2)
    assert set(stage.started[1].given_goals) == {"sheet 2"}
    assert put == ["sheet 1", "sheet 2"]


def test_deaths_in_a_row_end_the_run_and_a_rollout_between_them_does_not(stage: Stage) -> None:
    for number in range(5):
        assert stage.take_until(1) > 0
        stage.started[number].rollout = ActorDiedError()
        stage.take_until(1)
    stage.started[-1].rollout = stage.rollout = ActorDiedError()
    with pytest.raises(GiveUp, match=r"3 times in a row without progress; cluster.max_worker_restarts = 2"):
        stage.take_until(10)
    assert all(worker.killed for worker in stage.started)


def test_a_hung_worker_is_replaced_within_its_time(stage: Stage) -> None:
    stage.take_until(1)
    stage.started[0].rollout = None
    stage.take_until(TIMEOUT_S - 2)
    assert len(stage.started) == 1
    stage.take_until(4)
    assert (len(stage.started), stage.started[0].killed) == (2, True)
    assert stage.workers.problems[0].startswith(
        "worker 0.1-0 on host is replaced: no rollout within cluster.worker_timeout_s = 60 s"
    )


def test_a_worker_that_delivers_while_the_learner_takes_long_is_not_hung(stage: Stage) -> None:
    stage.take_until(1)
    stage.now += 10 * TIMEOUT_S  # nobody has looked
    assert stage.take_until(1) > 0
    assert len(stage.started) == 1


def test_a_worker_that_cannot_be_reached_is_polled_until_ray_knows_and_a_lost_node_costs_no_budget(
    stage: Stage,
) -> None:
    stage.take_until(1)
    for number in range(5):  # more than failures in a row are allowed
        worker = stage.started[number]
        worker.rollout, worker.hello_answer, worker.hellos = UNAVAILABLE, UNAVAILABLE, 0
        stage.take_until(10)
        assert 0.5 * 10 / SUSPECT_INTERVAL_S < worker.hellos <= 10 / SUSPECT_INTERVAL_S
        assert (len(stage.started), stage.workers.metrics()["workers_running"]) == (number + 1, 0)
        worker.hello_answer = NodeDiedError("gone")
        stage.take_until(SUSPECT_INTERVAL_S + 0.5)
        assert (len(stage.started), worker.killed) == (number + 2, True)


def test_a_worker_that_stays_out_of_reach_or_comes_back_is_replaced(stage: Stage) -> None:
    stage.take_until(1)
    stage.started[0].rollout = stage.started[0].hello_answer = UNAVAILABLE
    stage.take_until(TIMEOUT_S + 2)
    assert len(stage.started) == 2
    assert stage.take_until(1) > 0
    stage.started[1].rollout = UNAVAILABLE
    stage.take_until(2)
    assert len(stage.started) == 3, "its calls are lost"
    assert stage.workers.problems == [
        f"worker 0.1-0 on host is replaced: {cause}" for cause in ("it could not be reached any more",)
    ]
