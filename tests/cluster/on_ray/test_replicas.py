"""The watch over annotation replicas, with actors that a test plays: what is told of them, and when they are started
again."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from cluster.on_ray import replicas as ray_replicas
from cluster.on_ray import slot
from cluster.on_ray.placement import Request
from cluster.on_ray.replicas import HEALTHY_S, MAX_PAUSE_S, SILENCE_S, RayReplicas, ReplicaActor, ReplicaStatus
from configs.schema import ClusterConfig, RunConfig


class PlayedActor:
    """Answers `status` with what the test says, or not at all."""

    def __init__(self) -> None:
        self.answer: Any = None
        """A status, an exception, or None: no answer yet."""
        self.killed = False
        self.status = self.close = SimpleNamespace(remote=lambda: self)


class Stage:
    """A clock, the actors of each replica in the order they were started, and what `ray` does to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, replicas: int = 2) -> None:
        self.now = 1000.0
        self.started: dict[int, list[PlayedActor]] = {index: [] for index in range(replicas)}
        fake = SimpleNamespace(wait=self.wait, get=self.get, kill=self.kill, ObjectRef=object)
        monkeypatch.setattr(ray_replicas, "ray", fake)
        monkeypatch.setattr(slot, "ray", fake)
        monkeypatch.setattr(slot, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(
            ray_replicas, "ReplicaActor", SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self.start))
        )
        config = RunConfig(cluster=ClusterConfig(mode="local", service_replicas=replicas))
        self.replicas = RayReplicas(config, Request(cpus=0.5, gpus=0, count=replicas))

    def start(self, config: RunConfig, index: int, credentials: object) -> PlayedActor:
        self.started[index].append(PlayedActor())
        return self.started[index][-1]

    def wait(self, references: list[PlayedActor], **_: Any) -> tuple[list[PlayedActor], list[PlayedActor]]:
        return [actor for actor in references if actor.answer is not None], []

    def get(self, actor: PlayedActor) -> ReplicaStatus:
        answer = actor.answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: PlayedActor) -> None:
        actor.killed = True

    def says(self, index: int, address: str | None = None, problem: str | None = None, restarts: int = 0) -> None:
        self.started[index][-1].answer = ReplicaStatus(address=address, problem=problem, restarts=restarts)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            self.replicas.poll()


def test_replicas_are_known_by_name_once_they_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    assert (stage.replicas.addresses(), stage.replicas.num_waiting) == ({}, 2)
    stage.says(1)  # placed; its service still starts
    stage.pass_time(2)
    assert (stage.replicas.addresses(), stage.replicas.num_waiting) == ({}, 1)
    stage.says(0, "10.0.0.1:5")
    stage.says(1, "10.0.0.2:6")
    stage.pass_time(2)
    assert stage.replicas.addresses() == {"replica-0": "10.0.0.1:5", "replica-1": "10.0.0.2:6"}
    assert (stage.replicas.num_waiting, stage.replicas.restarts) == (0, 0)


def test_a_dead_replica_is_started_again_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.says(0, "10.0.0.1:5", restarts=1)
    stage.says(1, "10.0.0.2:6")
    stage.pass_time(2)
    stage.started[0][0].answer = ActorDiedError()
    stage.pass_time(2)
    assert stage.replicas.addresses() == {"replica-1": "10.0.0.2:6"}
    stage.pass_time(2)
    assert len(stage.started[0]) == 2
    stage.says(0, "10.0.0.3:7")
    stage.pass_time(2)
    assert stage.replicas.addresses()["replica-0"] == "10.0.0.3:7"
    assert stage.replicas.restarts == 2  # its service once, then its actor
    assert len(stage.started[1]) == 1


def test_one_that_dies_at_every_start_is_started_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.says(1, "10.0.0.2:6")
    starts = []
    for _ in range(600):
        if len(starts) < len(stage.started[0]):
            starts.append(stage.now)
            stage.started[0][-1].answer = ActorDiedError()
        stage.pass_time(0.5)
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses[0] < 4
    assert pauses == sorted(pauses)
    assert MAX_PAUSE_S <= pauses[-1] < MAX_PAUSE_S + 4


def test_a_silent_actor_is_replaced_but_one_that_waits_for_room_may_take_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch)
    stage.says(1, "10.0.0.2:6")
    stage.pass_time(2)
    stage.started[1][0].answer = None
    stage.pass_time(SILENCE_S + 5)
    assert stage.started[1][0].killed
    assert len(stage.started[1]) == 2
    assert len(stage.started[0]) == 1  # not placed yet
    assert not stage.started[0][0].killed


def test_a_service_that_gave_up_is_tried_elsewhere_until_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.says(0, problem="no model folder")
    stage.says(1, "10.0.0.2:6")
    stage.pass_time(4)
    assert len(stage.started[0]) == 2
    assert stage.replicas.problem is None
    stage.says(1, problem="no model folder either")
    stage.pass_time(2)
    assert stage.replicas.problem == "no model folder"
    started = len(stage.started[0]), len(stage.started[1])
    stage.pass_time(300)
    assert (len(stage.started[0]), len(stage.started[1])) == started  # none of them is started again


def test_closing_ends_every_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.says(0, "10.0.0.1:5")
    stage.pass_time(2)
    stage.replicas.close()
    assert all(actor.killed for actors in stage.started.values() for actor in actors)


def test_a_service_counts_as_healthy_only_once_its_judge_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that dies each time it loads, however long that takes, is given up."""
    clock, healthy = [0.0], []
    service = SimpleNamespace(
        ensure_running=lambda: True,
        is_loaded=False,
        served=lambda: healthy.append(clock[0]),
        address=lambda: "host:1",
        problem=None,
        restarts=0,
    )
    monkeypatch.setattr(ray_replicas, "enter_run", lambda config: None)
    monkeypatch.setattr(ray_replicas, "replica_service", lambda *arguments: service)
    monkeypatch.setattr(ray_replicas, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    config = RunConfig(cluster=ClusterConfig(mode="local", service_replicas=1))
    actor = ReplicaActor.__ray_metadata__.modified_class(config, 0, None)
    for clock[0] in range(1, 1000, 10):
        actor.status()
    assert not healthy, "it listens and loads"
    service.is_loaded = True
    for clock[0] in range(1000, 1000 + 2 * int(HEALTHY_S)):
        actor.status()
    assert healthy[0] == 1000 + HEALTHY_S + 1
