"""The rollout worker actors as one FIFO of rollouts, with replacement of dead and hung workers.

Invariant: at most `rollouts_in_flight` calls are outstanding per worker, each carrying the newest snapshot; a worker that dies
takes its unfinished rollouts with it and is replaced by a new incarnation, within the budget.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.exceptions import RayError

from actors.environment import EnvironmentSpec
from actors.policy import PolicySnapshot
from actors.rollout import Rollout
from cluster.placement import Request
from cluster.ray_actors import WorkerActor
from cluster.ray_annotation import RayAnnotation
from configs.schema import RunConfig

LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    """One worker's place: the actor of the moment and its outstanding calls, oldest first."""

    index: int
    incarnation: int = 0
    actor: Any = None
    worker_id: str = ""
    calls: deque[tuple[ray.ObjectRef, ray.ObjectRef]] = field(default_factory=deque)
    progressed_at: float = 0.0


class RayWorkers:
    """Handle of all rollout workers; owned by the learner's process, so that it owns the rollouts."""

    def __init__(self, config: RunConfig, spec: EnvironmentSpec, run_epoch: int, request: Request, annotation: RayAnnotation) -> None:
        self.spec = spec
        self._config, self._run_epoch, self._request, self._annotation = config, run_epoch, request, annotation
        self._snapshot: ray.ObjectRef | None = None
        self._restarts = 0
        self._collected_steps = 0
        self._slots = [_Slot(index) for index in range(request.count)]
        for slot in self._slots:
            self._start(slot)

    def publish(self, snapshot: PolicySnapshot) -> None:
        """One `ray.put`; the calls made from now on carry it."""
        self._snapshot = ray.put(snapshot)
        for slot in self._slots:
            self._fill(slot)

    def take(self, timeout_s: float) -> Rollout | None:
        """The next finished rollout; its caption report goes to the annotator. RuntimeError when the restart budget is spent."""
        self._replace_hung()
        oldest = {slot.calls[0][0]: slot for slot in self._slots if slot.calls}
        ready, _ = ray.wait([*oldest], num_returns=1, timeout=timeout_s)
        if not ready:
            return None
        slot = oldest[ready[0]]
        rollout_reference, report_reference = slot.calls.popleft()
        try:
            rollout: Rollout = ray.get(rollout_reference)
        except RayError as error:
            self._replace(slot, error)
            return None
        slot.progressed_at = time.monotonic()
        self._collected_steps += rollout.num_steps
        self._annotation.report(report_reference, slot.worker_id, self._collected_steps)
        self._fill(slot)
        # Slots take turns: a fast worker must not starve the oldest rollout of a slow one.
        self._slots.remove(slot)
        self._slots.append(slot)
        return rollout

    def metrics(self) -> Mapping[str, float | None]:
        """Finished rollouts not yet taken, and replacements so far."""
        outstanding = [reference for slot in self._slots for reference, _ in slot.calls]
        waiting = len(ray.wait(outstanding, num_returns=len(outstanding), timeout=0)[0]) if outstanding else 0
        return {"rollouts_waiting": waiting, "worker_restarts": self._restarts}

    def state_dict(self) -> dict[str, Any]:
        """Workers start new episodes on a resume; only the step clock of captions goes on."""
        return {"collected_steps": self._collected_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the step clock."""
        self._collected_steps = state["collected_steps"]

    def close(self) -> None:
        """End all workers; their environments are closed first where they answer."""
        closing = [slot.actor.close.remote() for slot in self._slots]
        ray.wait(closing, num_returns=len(closing), timeout=2.0)
        for slot in self._slots:
            ray.kill(slot.actor)

    def _start(self, slot: _Slot) -> None:
        incarnation = f"{self._run_epoch}-{slot.incarnation}"
        options = {"num_cpus": self._request.cpus, "num_gpus": self._request.gpus}
        slot.actor = cast(Any, WorkerActor).options(**options).remote(self._config, slot.index, incarnation)
        slot.worker_id = f"{slot.index}.{incarnation}"
        slot.progressed_at = time.monotonic()

    def _fill(self, slot: _Slot) -> None:
        while self._snapshot is not None and len(slot.calls) < self._config.actors.rollouts_in_flight:
            rollout, report = slot.actor.collect.remote(self._snapshot, self._annotation.acknowledgement(slot.worker_id))
            slot.calls.append((rollout, report))

    def _replace_hung(self) -> None:
        limit_s = self._config.cluster.worker_timeout_s
        for slot in [*self._slots]:
            if not slot.calls or time.monotonic() - slot.progressed_at <= limit_s:
                continue
            if ray.wait([slot.calls[0][0]], timeout=0)[0]:  # it has done its part: the learner is what takes long
                slot.progressed_at = time.monotonic()
            else:
                self._replace(slot, TimeoutError(f"no rollout within cluster.worker_timeout_s = {limit_s:g} s"))

    def _replace(self, slot: _Slot, error: Exception) -> None:
        self._restarts += 1
        if self._restarts > self._config.cluster.max_worker_restarts:
            raise RuntimeError(
                f"worker {slot.worker_id} failed, and cluster.max_worker_restarts = {self._config.cluster.max_worker_restarts} are used up: {error}"
            )
        LOG.error("worker %s is replaced: %s", slot.worker_id, error)
        ray.kill(slot.actor)
        slot.calls.clear()
        slot.incarnation += 1
        self._start(slot)
        self._fill(slot)
