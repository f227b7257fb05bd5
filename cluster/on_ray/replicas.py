"""Annotation replicas: several annotation services, each the child of its own actor, spread over the nodes.

Invariant: watching them never waits; one that dies, hangs or ends is restarted as a new actor under the same name, so
that it gets the same share of the captions; the learner owns them, and they die with it.
"""

import logging
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError

from cluster.judge import replica_service
from cluster.on_ray.nodes import enter_run, start_actor
from cluster.on_ray.placement import Request
from cluster.on_ray.slot import Slot, SlotState, answered
from cluster.supervision import last_line
from configs.backoff import backoff_s
from configs.schema import RunConfig
from llm_server.credentials import CredentialFiles, make_credentials

LOG = logging.getLogger(__name__)
POLL_INTERVAL_S = 1.0
SILENCE_S = 30.0
"""A placed actor that has not answered for this long is replaced."""
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
HEALTHY_S = 60.0
"""A service whose judge has been loaded for this long is healthy: its earlier failures are no longer counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """The state of a replica's service (replica actor -> learner)."""

    address: str | None
    """host:port; None while it starts."""
    problem: str | None
    """Why it will not be restarted."""
    restarts: int


@ray.remote(max_restarts=0)
class ReplicaActor:
    """Runs and watches one annotation service."""

    def __init__(self, config: RunConfig, index: int, credentials: CredentialFiles | None) -> None:
        run = enter_run(config)
        host = "127.0.0.1" if config.cluster.mode == "local" else ray.util.get_node_ip_address()
        self._service = replica_service(config, run, index, host, credentials)
        self._loaded_since: float | None = None
        self._service.ensure_running()

    def status(self) -> ReplicaStatus:
        """The service's state; restarts the service where that is due."""
        is_up = self._service.ensure_running()
        now = time.monotonic()
        self._loaded_since = (self._loaded_since or now) if is_up and self._service.is_loaded else None
        if self._loaded_since is not None and now - self._loaded_since > HEALTHY_S:
            self._service.served()
        address = self._service.address() if is_up else None
        return ReplicaStatus(address=address, problem=self._service.problem, restarts=self._service.restarts)

    def close(self) -> None:
        """End the service."""
        self._service.close()


@dataclass(slots=True, kw_only=True, eq=False)
class _ReplicaSlot(Slot):
    """One replica; its actor answers with a ReplicaStatus."""

    name: str
    index: int
    interval_s: float = POLL_INTERVAL_S
    problem: str | None = None
    """Why its last service gave up; None once one listens."""
    service_restarts: int = 0
    """Restarts within earlier actors."""


class RayReplicas:
    """Starts and watches all replicas; owned by the learner's process."""

    def __init__(self, config: RunConfig, request: Request) -> None:
        self._config, self.request = config, request
        self.credentials = _new_credentials(Path(config.run_dir)) if config.cluster.mode == "connect" else None
        """TLS certificates and token of replicas and clients; None on one machine, where they listen on loopback."""
        self._slots = [_ReplicaSlot(name=f"replica-{index}", index=index) for index in range(request.count)]
        for slot in self._slots:
            self._start(slot)

    def poll(self) -> None:
        """Process the replicas' answers; restart those that have failed."""
        for slot in self._slots:
            if slot.state is SlotState.EMPTY and self.problem is None:
                self._start(slot)
        ready = answered(self._slots)
        for slot in self._slots:
            try:
                if slot in ready:
                    self._answered(slot)
                elif slot.state is SlotState.ALIVE and slot.silent_s > SILENCE_S:
                    self._lost(slot, f"it has not answered for {SILENCE_S:.0f} s")
                if slot.may_ask:
                    slot.ask(slot.actor.status.remote())
            except RayError as error:
                self._lost(slot, last_line(str(error)))

    def addresses(self) -> dict[str, str]:
        """host:port by name of the replicas that listen."""
        return {slot.name: slot.answer.address for slot in self._slots if slot.answer and slot.answer.address}

    @property
    def problem(self) -> str | None:
        """Why no replica will ever listen; None as long as one may."""
        return self._slots[0].problem if all(slot.problem for slot in self._slots) else None

    @property
    def restarts(self) -> int:
        """Restarts of services, within an actor or with a new one: a lost actor counts once its successor starts."""
        services = sum(slot.service_restarts + (slot.answer.restarts if slot.answer else 0) for slot in self._slots)
        return services + sum(max(0, slot.losses - (slot.actor is None)) for slot in self._slots)

    @property
    def num_waiting(self) -> int:
        """Replicas that have been requested and are not placed yet."""
        return sum(slot.state is SlotState.STARTING for slot in self._slots)

    def close(self) -> None:
        """End all services, then their actors."""
        closing = [slot.actor.close.remote() for slot in self._slots if slot.state is SlotState.ALIVE]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=5.0)
        for slot in self._slots:
            slot.end()
        if self.credentials is not None:
            shutil.rmtree(self.credentials.token.parent, ignore_errors=True)

    def _start(self, slot: _ReplicaSlot) -> None:
        arguments = (self._config, slot.index, self.credentials)
        slot.start(start_actor(ReplicaActor, self.request, *arguments, index=slot.index))
        slot.ask(slot.actor.status.remote())

    def _answered(self, slot: _ReplicaSlot) -> None:
        before: ReplicaStatus | None = slot.answer
        status: ReplicaStatus = slot.take_answer()
        if status.address and (before is None or before.address != status.address):
            LOG.info("annotation %s listens on %s", slot.name, status.address)
        if status.address:
            slot.failures, slot.problem = 0, None
        elif status.problem:
            slot.problem = status.problem
            if self.problem is None:  # others may still start, and it may succeed on another node
                self._lost(slot, status.problem)

    def _lost(self, slot: _ReplicaSlot, why: str) -> None:
        if slot.answer:
            slot.service_restarts += slot.answer.restarts
        slot.lost()
        pause_s = backoff_s(slot.failures, FIRST_PAUSE_S, MAX_PAUSE_S)
        slot.back_off(pause_s)
        message = "annotation %s is lost, the others take its captions; it is started again in %.0f s: %s"
        LOG.error(message, slot.name, pause_s, why)


def _new_credentials(run_dir: Path) -> CredentialFiles:
    """Credentials for this learner process alone; those of earlier ones are removed. The directory has a random name,
    because a shared file system may show another node an outdated file for a while."""
    directory = run_dir / "credentials"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    return make_credentials(directory / secrets.token_hex(4))
