"""Annotation replicas: several annotation services, each the child of an actor of its own, spread over the nodes.

Invariant: watching them never waits; one that dies, hangs or ends is started again as a new actor under its old name, so that
its share of the captions comes back to it; their owner is the learner, and they die with it.
"""

import logging
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError

from cluster.on_ray.nodes import keep_to_assigned_gpus, options
from cluster.on_ray.placement import Request
from cluster.run import temporary
from cluster.run.directory import RunDirectory
from cluster.run.logs import log_to_file
from cluster.wiring import replica_service
from configs.backoff import backoff_s
from configs.schema import RunConfig
from llm_server.credentials import CredentialFiles, make_credentials

LOG = logging.getLogger(__name__)
POLL_INTERVAL_S = 1.0
SILENCE_S = 30.0
"""An actor that has been placed and has not answered for so long is replaced."""
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
SOUND_S = 60.0
"""A service that has listened for so long is taken to be sound: what failed before is forgiven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """What a replica says of its service (replica actor -> learner)."""

    address: str | None
    """host:port; None while it starts."""
    problem: str | None
    """Why it is not started any more."""
    restarts: int


@ray.remote(max_restarts=0)
class ReplicaActor:
    """One annotation service and who watches it."""

    def __init__(self, config: RunConfig, index: int, credentials: CredentialFiles | None) -> None:
        keep_to_assigned_gpus()
        temporary.enter(config.run_dir)
        run = RunDirectory(Path(config.run_dir))
        log_to_file(run.log)
        host = "127.0.0.1" if config.cluster.mode == "local" else ray.util.get_node_ip_address()
        self._service = replica_service(config, run, index, host, credentials)
        self._listening_since: float | None = None
        self._service.ensure_running()

    def status(self) -> ReplicaStatus:
        """Starts the service again where that is due."""
        is_up = self._service.ensure_running()
        now = time.monotonic()
        self._listening_since = (self._listening_since or now) if is_up else None
        if self._listening_since is not None and now - self._listening_since > SOUND_S:
            self._service.served()
        address = self._service.address() if is_up else None
        return ReplicaStatus(address=address, problem=self._service.problem, restarts=self._service.restarts)

    def close(self) -> None:
        """End the service."""
        self._service.close()


@dataclass(slots=True)
class _Slot:
    """A replica's place: the actor of the moment, and what is known of it."""

    name: str
    index: int
    actor: Any = None
    question: ray.ObjectRef | None = None
    asked_at: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    starts: int = 0
    status: ReplicaStatus | None = None
    """None until the actor has answered: it may not be placed yet."""
    problem: str | None = None
    """Why its last service gave up; None once one listens."""
    service_restarts: int = 0
    """Of actors that are gone."""


class RayReplicas:
    """Starts and watches all replicas; owned by the learner's process."""

    def __init__(self, config: RunConfig, request: Request) -> None:
        self._config, self.request = config, request
        self.credentials = _new_credentials(Path(config.run_dir)) if config.cluster.mode == "connect" else None
        """What the replicas want to be shown, and prove themselves by; None on one machine, where they listen on loopback."""
        self._slots = [_Slot(name=f"replica-{index}", index=index) for index in range(request.count)]
        for slot in self._slots:
            self._start(slot)

    def poll(self) -> None:
        """Take in what the replicas have said; replace those that are gone."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.actor is None:
                if now >= slot.start_at and self.problem is None:
                    self._start(slot)
                continue
            try:
                if slot.question is not None and ray.wait([slot.question], timeout=0)[0]:
                    question, slot.question = slot.question, None
                    self._answered(slot, ray.get(question))
                elif slot.question is not None and slot.status is not None and now - slot.asked_at > SILENCE_S:
                    self._lost(slot, f"it has not answered for {SILENCE_S:.0f} s")
                if slot.actor is not None and slot.question is None and now - slot.asked_at > POLL_INTERVAL_S:
                    slot.asked_at, slot.question = now, slot.actor.status.remote()
            except RayError as error:
                self._lost(slot, str(error).strip().splitlines()[-1])

    def addresses(self) -> dict[str, str]:
        """host:port by name of the replicas that listen."""
        return {
            slot.name: slot.status.address for slot in self._slots if slot.status is not None and slot.status.address
        }

    @property
    def problem(self) -> str | None:
        """Why no replica will ever listen; None as long as one may."""
        return self._slots[0].problem if all(slot.problem for slot in self._slots) else None

    @property
    def restarts(self) -> int:
        """Services started anew, those with a new actor included."""
        return sum(
            max(0, slot.starts - 1) + slot.service_restarts + (slot.status.restarts if slot.status is not None else 0)
            for slot in self._slots
        )

    @property
    def num_waiting(self) -> int:
        """Replicas that have been asked for and are not placed yet."""
        return sum(slot.actor is not None and slot.status is None for slot in self._slots)

    def close(self) -> None:
        """End all services, then their actors."""
        actors = [slot.actor for slot in self._slots if slot.actor is not None]
        closing = [
            slot.actor.close.remote() for slot in self._slots if slot.actor is not None and slot.status is not None
        ]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=5.0)
        for actor in actors:
            ray.kill(actor)
        if self.credentials is not None:
            shutil.rmtree(self.credentials.directory, ignore_errors=True)

    def _start(self, slot: _Slot) -> None:
        slot.actor = (
            cast(Any, ReplicaActor)
            .options(**options(self.request, slot.index))
            .remote(self._config, slot.index, self.credentials)
        )
        slot.starts += 1
        slot.asked_at, slot.question = time.monotonic(), slot.actor.status.remote()

    def _answered(self, slot: _Slot, status: ReplicaStatus) -> None:
        if status.address and (slot.status is None or slot.status.address != status.address):
            LOG.info("annotation %s listens on %s", slot.name, status.address)
        slot.status = status
        if status.address:
            slot.failures, slot.problem = 0, None
        elif status.problem:
            slot.problem = status.problem
            if self.problem is None:  # the others go on, and on another node it may do better
                self._lost(slot, status.problem)

    def _lost(self, slot: _Slot, why: str) -> None:
        slot.failures += 1
        pause_s = backoff_s(slot.failures, FIRST_PAUSE_S, MAX_PAUSE_S)
        LOG.error(
            "annotation %s is lost, the others take its captions; it is started again in %.0f s: %s",
            slot.name,
            pause_s,
            why,
        )
        if slot.actor is not None:
            ray.kill(slot.actor)
        if slot.status is not None:
            slot.service_restarts += slot.status.restarts
        slot.actor = slot.question = slot.status = None
        slot.start_at = time.monotonic() + pause_s


def _new_credentials(run_dir: Path) -> CredentialFiles:
    """For this life of the learner alone, in a directory of its own name: a shared file system may show another node an older file for
    a while. Those of earlier lives go."""
    directory = run_dir / "credentials"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    return make_credentials(directory / secrets.token_hex(4))
