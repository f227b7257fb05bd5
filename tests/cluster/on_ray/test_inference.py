"""What becomes of inference actors that die, hang, or cannot be reached, and of their workers, by a clock and actors
that the test plays."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from cluster.on_ray import inference as ray_inference
from cluster.on_ray import slot
from cluster.on_ray import workers as ray_workers
from cluster.on_ray.failures import ProcessId
from cluster.on_ray.inference import InferenceActor, SignOfLife
from cluster.on_ray.placement import Request
from cluster.supervision import GiveUp
from configs.schema import ActorsConfig, ClusterConfig, RunConfig
from tests.cluster.on_ray.played_ray import Call, PlayedRay
from tests.learner.toy_rollouts import random_rollout

TIMEOUT_S = 60.0
ROLLOUT = random_rollout()


class Played:
    """An inference actor or a worker; answers at once, unless the test says otherwise."""

    def __init__(self, number: int, node_id: str | None, arguments: tuple[Any, ...], rollout: Any) -> None:
        process = ProcessId(f"node-{number}", "host", number)
        self.node_id, self.arguments, self.killed = node_id, arguments, False
        self.life: Any = SignOfLife(process, f"socket-{number}", 0.0)
        self.process, self.rollout = process, rollout
        self.end: Any = None
        self.loads: Any = True
        self.loaded: list[Any] = []
        self.collected_with: list[Any] = []
        self.sign = SimpleNamespace(remote=lambda: Call(self, "life"))
        self.serve = SimpleNamespace(remote=lambda: Call(self, "end"))
        self.goals: list[Any] = []
        self.given_goals: list[Any] = []
        self.load = SimpleNamespace(remote=self._load)
        self.hello = SimpleNamespace(remote=lambda: Call(self, "process"))
        self.collect = SimpleNamespace(
            remote=lambda snapshot, _, goals: [
                self._note(self.collected_with, snapshot, "rollout"),
                self._note(self.given_goals, goals, "rollout"),
            ]
        )

    def _load(self, snapshot: Any, goals: Any) -> Call:
        self.goals.append(goals)
        return self._note(self.loaded, snapshot, "loads")

    def _note(self, noted: list[Any], what: Any, attribute: str) -> Call:
        noted.append(what)
        return Call(self, attribute)


class Stage(PlayedRay):
    """Two workers and their inference actor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
        super().__init__(monkeypatch, (slot, ray_workers, ray_inference))
        self.rollout: Any = ROLLOUT
        """What workers that are started from now on give."""
        self.servers_start = True
        self.servers: list[Played] = []
        self.started: list[Played] = []
        cluster = ClusterConfig(mode="local", worker_timeout_s=TIMEOUT_S, max_worker_restarts=2)
        actors = ActorsConfig(num_workers=2, rollouts_in_flight=1, inference="central")
        config = RunConfig(run_dir=str(run_dir), actors=actors, cluster=cluster)
        self.supervise(config, Request(cpus=1, gpus=0, count=2), Request(cpus=1, gpus=0.5, count=1))

    def start(self, actor_class: Any, _: Any, *arguments: Any, index: int, node_id: str | None = None) -> Played:
        made = self.servers if actor_class is InferenceActor else self.started
        made.append(Played(len(made), node_id, arguments, self.rollout))
        if made is self.servers and not self.servers_start:
            made[-1].life = None
        return made[-1]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)


def test_workers_are_started_beside_their_inference_actor_once_it_runs(stage: Stage) -> None:
    stage.take_until(2)
    stage.servers_start = False
    stage.servers[0].end = ActorDiedError()
    assert stage.take_until(5) <= 1
    assert (len(stage.servers), len(stage.started)) == (2, 2)
    assert stage.workers.waiting == "1 of 1 inference actors to start (1 CPU, 0.5 GPU each)"
    stage.servers[1].life = SignOfLife(stage.servers[1].process, "socket-1", 0.0)
    assert stage.take_until(2) > 0
    assert [(worker.node_id, worker.arguments[-1]) for worker in stage.started[2:]] == [("node-1", "socket-1")] * 2
    assert set(stage.started[0].collected_with) == {None}, "the weights go to the inference actor alone"


def test_weights_that_come_while_the_last_are_taken_in_are_sent_once_and_the_newest(stage: Stage) -> None:
    stage.servers[0].loads = None
    for number in range(1, 5):
        stage.workers.publish(f"version {number}")  # type: ignore[arg-type]
    stage.take_until(1)
    assert stage.servers[0].loaded == ["version 0"]
    stage.servers[0].loads = True
    stage.take_until(1)
    assert stage.servers[0].loaded == ["version 0", "version 4"]


def test_workers_get_the_goals_that_their_inference_actor_has(stage: Stage) -> None:
    stage.take_until(2)
    assert set(stage.servers[0].goals) == set(stage.started[0].given_goals) == {None}
    stage.servers[0].loads = None
    stage.workers.publish_goals("sheet 1")  # type: ignore[arg-type]
    stage.take_until(1)
    assert stage.servers[0].goals[-1] == "sheet 1"
    assert set(stage.started[0].given_goals) == {None}, "it may not have come yet"
    stage.servers[0].loads = True
    stage.take_until(1)
    assert stage.started[0].given_goals[-1] == stage.started[1].given_goals[-1] == "sheet 1"
    stage.servers[0].end = ActorDiedError()
    stage.take_until(10)
    assert stage.servers[1].goals[-1] == "sheet 1", "its successor gets the newest"
    assert stage.started[-1].given_goals[-1] == "sheet 1"


@pytest.mark.parametrize("fault", ["dies", "hangs", "stalls"])
def test_a_lost_inference_actor_is_replaced_with_its_workers_at_its_own_cost_alone(stage: Stage, fault: str) -> None:
    stage.take_until(2)
    server = stage.servers[0]
    for worker in stage.started:
        worker.rollout = None  # nobody answers it any more
    if fault == "dies":
        server.end = ActorDiedError()
    else:
        server.life = SignOfLife(server.process, "socket-0", TIMEOUT_S) if fault == "stalls" else None
    stage.take_until(TIMEOUT_S / 2 + 3)
    assert server.killed
    assert (len(stage.servers), len(stage.started)) == (2, 4)
    assert [worker.killed for worker in stage.started] == [True, True, False, False]
    assert [worker.arguments[-1] for worker in stage.started[2:]] == ["socket-1"] * 2
    assert stage.servers[1].loaded == ["version 0"]
    assert stage.take_until(1) > 0
    assert len(stage.workers.problems) == 1
    assert stage.workers.problems[0].startswith("the inference actor inference-0.1-0 on host is replaced: ")


def test_inference_actors_that_die_in_a_row_end_the_run(stage: Stage) -> None:
    stage.take_until(2)
    stage.rollout = None  # no worker delivers before the next inference actor dies
    for number in range(3):
        assert len(stage.servers) == number + 1
        for worker in stage.started:
            worker.rollout = None
        stage.servers[-1].end = ActorDiedError()
        if number < 2:
            stage.take_until(3)
    with pytest.raises(GiveUp, match=r"inference actor inference-0\.1-2 failed: .*3 times in a row without progress"):
        stage.take_until(3)


def test_one_that_is_out_of_reach_for_a_moment_is_kept(stage: Stage) -> None:
    stage.take_until(2)
    life, stage.servers[0].life = stage.servers[0].life, ActorUnavailableError("no answer", b"a" * 16)
    stage.take_until(5)
    stage.servers[0].life = life
    assert stage.take_until(TIMEOUT_S) > 0
    assert len(stage.servers) == 1
