"""Ray and the clock as a test plays them, for the supervision of actors that do what the test says."""

from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cluster.on_ray.workers import RayWorkers
from configs.schema import RunConfig


class Call:
    """A call whose answer is an attribute of its actor; None: there is no answer yet."""

    def __init__(self, actor: Any, attribute: str) -> None:
        self.actor, self.attribute = actor, attribute

    @property
    def answer(self) -> Any:
        return getattr(self.actor, self.attribute)


class PlayedRay:
    """What `ray` and `time` do in these modules, and the workers that are supervised with them."""

    workers: RayWorkers

    def __init__(self, monkeypatch: pytest.MonkeyPatch, modules: Sequence[ModuleType]) -> None:
        self.now, self.without_a_wait = 1000.0, 0
        fake = SimpleNamespace(
            wait=self.wait, get=self.get, kill=self.kill, put=lambda what: what, available_resources=dict
        )
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        for module in modules:
            monkeypatch.setattr(module, "ray", fake)
            monkeypatch.setattr(module, "time", clock)
            if hasattr(module, "start_actor"):
                monkeypatch.setattr(module, "start_actor", self.start)
        monkeypatch.setattr("cluster.on_ray.failures._is_alive", lambda node_id: True)

    def supervise(self, config: RunConfig, *requests: Any) -> None:
        """Begin with the workers of these requests, and an annotation that says nothing."""
        annotation: Any = SimpleNamespace(acknowledgement=lambda worker_id: None, report=lambda *_: None)
        spec: Any = None
        request, *others = requests
        self.workers = RayWorkers(config, spec, 1, request, annotation, *others)
        self.workers.publish("version 0")  # type: ignore[arg-type]

    def start(self, actor_class: Any, *arguments: Any, index: int, node_id: str | None = None) -> Any:
        """The actor of a class."""
        raise NotImplementedError

    def wait(self, calls: list[Call], timeout: float, **_: Any) -> tuple[list[Call], list[Call]]:
        ready = [call for call in calls if call.answer is not None]
        self.now += 0.0 if ready else timeout
        return ready, []

    def get(self, call: Call) -> Any:
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def kill(self, actor: Any) -> None:
        actor.killed = True

    def sleep(self, seconds: float) -> None:
        self.without_a_wait = 0 if seconds else self.without_a_wait + 1
        assert self.without_a_wait < 3, "it is busy while nothing is to be done"
        self.now += seconds

    def take_until(self, seconds: float) -> int:
        """The rollouts that came within that time, which each take a moment."""
        until, taken = self.now + seconds, 0
        while self.now < until:
            taken += self.workers.take(0.1) is not None
            self.now += 0.01
        return taken
