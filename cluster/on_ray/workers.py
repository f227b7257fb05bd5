"""The rollout worker actors as one FIFO of rollouts, with replacement of dead and hung workers.

    a worker whose slot is   gets
    STARTING                 no calls, and no time limit
    ALIVE                    calls; it is replaced unless it delivers within `worker_timeout_s`
    ALIVE and suspected      polls while Ray does not know why it is unreachable, within the same time limit
    BACKING_OFF              a successor after the back-off
    any, its server lost     an end, and a successor beside the next inference actor (`cluster.on_ray.inference`)

Invariant: at most `rollouts_in_flight` calls are outstanding per worker, each carrying the newest snapshot; a worker
that dies takes its unfinished rollouts with it and is replaced by a new incarnation, within the budget. A lost node
costs no budget.
"""

import logging
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, RayError

from actors.environments.vector import EnvironmentSpec
from actors.goals.sheet import GoalSheet
from actors.policy import PolicySnapshot, bound_kept_kernels
from actors.rollout import Acknowledgement, CaptionReport, Rollout
from actors.worker import RolloutWorker
from cluster.on_ray.annotation import RayAnnotation
from cluster.on_ray.failures import ProcessId, replace_failed, this_process
from cluster.on_ray.inference import RayInference
from cluster.on_ray.nodes import enter_run, start_actor
from cluster.on_ray.placement import Request
from cluster.on_ray.slot import Slot, SlotState, answered
from cluster.run.logs import StderrFile, prune, stderr_path, stderr_tail
from cluster.supervision import EnvironmentBudget, GiveUp, Notices
from cluster.wiring import build_worker
from configs.schema import RunConfig

LOG = logging.getLogger(__name__)
SUSPECT_INTERVAL_S = 0.5
KEPT_KERNELS = 64
"""In a worker of 64 environments this takes 20 MB less than keeping all, at the same speed."""


@ray.remote(max_restarts=0)
class WorkerActor:
    """A rollout worker."""

    def __init__(self, config: RunConfig, index: int, incarnation: str, server: str | None = None) -> None:
        """`server`: the socket of its inference server; None where it computes the policy itself."""
        self._config, self._index, self._incarnation = config, index, incarnation
        self._server = None if server is None else Path(server)
        self._stderr = StderrFile(stderr_path(Path(config.run_dir), f"{index}.{incarnation}"))
        enter_run(config)
        bound_kept_kernels(KEPT_KERNELS)
        torch.set_num_threads(config.actors.torch_threads)
        self._worker: RolloutWorker | None = None  # environments are made in the first `collect`, which has a deadline

    def hello(self) -> ProcessId:
        """Which process this is; answered once the actor has been placed and started."""
        return this_process()

    @ray.method(num_returns=2)
    def collect(
        self, snapshot: PolicySnapshot | None, acknowledgement: Acknowledgement | None, goals: GoalSheet | None
    ) -> tuple[Rollout, CaptionReport]:
        """One rollout and its caption report; the snapshot is for a worker without a server."""
        self._stderr.trim()
        if self._worker is None:
            stream = f"train-{self._incarnation}"
            self._worker = build_worker(
                self._config, self._index, incarnation=self._incarnation, stream=stream, server=self._server
            )
        return self._worker.collect(snapshot, acknowledgement, goals)

    def close(self) -> None:
        """Release the environments, which removes their temporary files."""
        if self._worker is not None:
            self._worker.close()
        self._stderr.discard()


@dataclass(slots=True, kw_only=True, eq=False)
class _WorkerSlot(Slot):
    """One worker, which answers with its ProcessId, and its outstanding `collect` calls."""

    index: int
    interval_s: float = SUSPECT_INTERVAL_S
    worker_id: str = ""
    server: tuple[str, str] | None = None
    """Node id and socket of its inference server, if it has one."""
    calls: deque[Sequence[ray.ObjectRef]] = field(default_factory=deque)
    """Of a rollout and its caption report, oldest first."""
    suspicion: RayError | None = None
    """Why it cannot be reached; None while it can."""
    progress_at: float = field(default_factory=time.monotonic)
    """Since when the time limit for its next rollout runs."""

    @property
    def is_running(self) -> bool:
        """Whether it may be asked for rollouts."""
        return self.state is SlotState.ALIVE and self.suspicion is None


class RayWorkers:
    """Handle of all rollout workers; lives in the learner's process, which so owns the rollouts."""

    def __init__(
        self,
        config: RunConfig,
        spec: EnvironmentSpec,
        run_epoch: int,
        request: Request,
        annotation: RayAnnotation,
        inference_request: Request | None = None,
    ) -> None:
        """`inference_request`: of the inference actors; None where each worker computes the policy itself."""
        self.spec = spec
        self.waiting: str | None = None
        self._config, self._run_epoch, self._request, self._annotation = config, run_epoch, request, annotation
        self._run_dir = Path(config.run_dir)
        self._snapshot: ray.ObjectRef | None = None
        self._goals: ray.ObjectRef | None = None
        self._references: weakref.WeakKeyDictionary[Rollout, ray.ObjectRef] = weakref.WeakKeyDictionary()
        self._collected_steps = 0
        self._notices = Notices()
        self.problems: Sequence[str] = self._notices.told
        self._environments = EnvironmentBudget(config.cluster.max_environment_loss, self._notices)
        self._needed = min(config.cluster.min_workers or request.count, request.count)
        self._has_begun = False
        self._created_at = time.monotonic()
        prune(self._run_dir)
        self._inference: RayInference | None = None
        if inference_request is not None:
            self._inference = RayInference(config, spec, run_epoch, inference_request, self._notices)
        self._slots = [_WorkerSlot(index=index) for index in range(request.count)]
        self._start_due()

    def publish(self, snapshot: PolicySnapshot) -> None:
        """One `ray.put`; the calls made from now on, or those to the inference actors, carry it."""
        self._snapshot = ray.put(snapshot)
        if self._inference is not None:
            self._inference.publish(self._snapshot)
        for slot in self._slots:
            self._fill(slot)

    def publish_goals(self, sheet: GoalSheet) -> None:
        """One `ray.put`; the calls made from now on carry it, those to workers of an inference actor once that has the
        goals' vectors."""
        self._goals = ray.put(sheet)
        if self._inference is not None:
            self._inference.publish_goals(self._goals)

    def take(self, timeout_s: float) -> Rollout | None:
        """The next finished rollout; its caption report goes to the annotator. Raises GiveUp when a budget is spent."""
        if self._inference is not None:
            self._inference.tend()
            self._end_without_server()
        self._start_due()
        self._admit_started()
        self._replace_hung()
        expected = {slot.call or slot.calls[0][0]: slot for slot in self._slots if slot.call or slot.calls}
        others = () if self._inference is None else self._inference.calls
        if not expected and not others:
            due_at = self._inference.due_at if self._inference else min(slot.due_at for slot in self._slots)
            time.sleep(min(timeout_s, max(0.0, due_at - time.monotonic())))
            return None
        ready, _ = ray.wait([*expected, *others], num_returns=1, timeout=timeout_s)
        if not ready or ready[0] in others or expected[ready[0]].call is not None:
            return None
        return self._take(expected[ready[0]])

    def reference(self, rollout: Rollout) -> ray.ObjectRef:
        """Where in the object store a rollout from `take` is, as long as somebody holds the rollout."""
        return self._references[rollout]

    def metrics(self) -> Mapping[str, float | None]:
        """Finished rollouts not yet taken, running workers, replacements, and exceptions of environments so far."""
        outstanding = [reference for slot in self._slots for reference, _ in slot.calls]
        waiting = len(ray.wait(outstanding, num_returns=len(outstanding), timeout=0)[0]) if outstanding else 0
        return {
            "rollouts_waiting": waiting,
            "workers_running": self._num_running,
            "worker_restarts": sum(slot.losses for slot in self._slots),
            "environment_errors": self._environments.errors,
        }

    def state_dict(self) -> dict[str, Any]:
        """Workers start new episodes on a resume; only the step count of captions continues."""
        return {"collected_steps": self._collected_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._collected_steps = state["collected_steps"]

    def close(self) -> None:
        """End all workers; those that answer close their environments first."""
        closing = [slot.actor.close.remote() for slot in self._slots if slot.is_running]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=2.0)
        for slot in self._slots:
            slot.end()
        if self._inference is not None:
            self._inference.close()

    @property
    def _num_running(self) -> int:
        return sum(slot.is_running for slot in self._slots)

    def _take(self, slot: _WorkerSlot) -> Rollout | None:
        rollout_reference, report_reference = slot.calls.popleft()
        try:
            rollout: Rollout = ray.get(rollout_reference)
        except RayError as error:
            self._failed(slot, error)
            return None
        self._references[rollout] = rollout_reference
        slot.progress_at, slot.failures = time.monotonic(), 0
        if self._inference is not None:
            self._inference.delivered(slot.index)
        self._collected_steps += rollout.num_steps
        self._annotation.report(report_reference, slot.worker_id, self._collected_steps)
        self._fill(slot)
        # Round robin: a fast worker must not starve the oldest rollout of a slow one.
        self._slots.remove(slot)
        self._slots.append(slot)
        self._environments.note(rollout)
        return rollout

    def _start_due(self) -> None:
        for slot in self._slots:
            if slot.state is SlotState.EMPTY:
                self._start(slot)
            elif slot.suspicion is not None and slot.may_ask:
                slot.ask(slot.actor.hello.remote())

    def _start(self, slot: _WorkerSlot) -> None:
        """Start a worker, beside its inference server if it has one, once that runs."""
        node_id = path = None
        if self._inference is not None:
            slot.server = self._inference.address(slot.index)
            if slot.server is None:
                return
            node_id, path = slot.server
        incarnation = f"{self._run_epoch}-{slot.losses}"
        arguments = (self._config, slot.index, incarnation, path)
        slot.start(start_actor(WorkerActor, self._request, *arguments, index=slot.index, node_id=node_id))
        slot.worker_id = f"{slot.index}.{incarnation}"
        slot.ask(slot.actor.hello.remote())

    def _end_without_server(self) -> None:
        """End the workers of replaced inference servers: what these had of their episodes is lost."""
        assert self._inference is not None
        for slot in self._slots:
            if slot.actor is not None and slot.server != self._inference.address(slot.index):
                slot.lost(is_own_fault=False)
                slot.calls.clear()
                slot.suspicion = None

    def _admit_started(self) -> None:
        """Let workers that have answered for the first time run; all begin together, once enough of them run."""
        for slot in answered(self._slots):
            try:
                process: ProcessId = slot.take_answer()
            except RayError as error:
                self._failed(slot, error)
                continue
            if slot.suspicion is not None:  # it is reachable again, but its calls are lost
                self._replace(slot, slot.suspicion)
                continue
            slot.progress_at = time.monotonic()
            LOG.info("worker %s runs: process %d on %s", slot.worker_id, process.pid, process.host)
            self._fill(slot)
        if not self._has_begun and self._num_running >= self._needed:
            self._has_begun = True
            for slot in self._slots:
                slot.progress_at = time.monotonic()
                self._fill(slot)
        self._update_waiting()

    def _update_waiting(self) -> None:
        pending = sum(slot.state is SlotState.STARTING and slot.suspicion is None for slot in self._slots)
        each = f"{self._request.cpus:g} CPU" + (f", {self._request.gpus:g} GPU" if self._request.gpus else "")
        self.waiting = f"{pending} of {len(self._slots)} workers to start ({each} each)" if pending else None
        if self._inference is not None and self._inference.waiting is not None:
            self.waiting = self._inference.waiting
        if self.waiting is None:
            return
        limit_s = self._config.cluster.placement_timeout_s
        if not self._has_begun and time.monotonic() - self._created_at > limit_s:
            raise GiveUp(
                f"{self._num_running} workers were up within cluster.placement_timeout_s = {limit_s:g} s, wanted"
                f" {self._needed}"
                f" (cluster.min_workers): waiting for {self.waiting}; free resources: {ray.available_resources()}"
            )

    def _fill(self, slot: _WorkerSlot) -> None:
        if self._snapshot is None or not self._has_begun or not slot.is_running:
            return
        snapshot = self._snapshot if self._inference is None else None
        goals = self._inference.goals_of(slot.index) if self._inference is not None else self._goals
        while len(slot.calls) < self._config.actors.rollouts_in_flight:
            acknowledgement = self._annotation.acknowledgement(slot.worker_id)
            slot.calls.append(slot.actor.collect.remote(snapshot, acknowledgement, goals))

    def _is_late(self, slot: _WorkerSlot) -> bool:
        return time.monotonic() - slot.progress_at > self._config.cluster.worker_timeout_s

    def _replace_hung(self) -> None:
        for slot in self._slots:
            if not self._is_late(slot) or not (slot.calls or slot.suspicion):
                continue
            if slot.suspicion is not None:
                self._replace(slot, slot.suspicion)
            elif ray.wait([slot.calls[0][0]], timeout=0)[0]:  # its rollout is ready: the learner is what takes long
                slot.progress_at = time.monotonic()
            else:
                limit = f"cluster.worker_timeout_s = {self._config.cluster.worker_timeout_s:g} s"
                self._replace(slot, TimeoutError(f"no rollout within {limit}; the process is ended"))

    def _failed(self, slot: _WorkerSlot, error: RayError) -> None:
        """After a failed call: replace the worker, or suspect it while Ray may still find its node lost."""
        if not isinstance(error, ActorUnavailableError) or self._is_late(slot):
            self._replace(slot, error)
            return
        if slot.suspicion is None:
            LOG.warning("worker %s cannot be reached: %s", slot.worker_id, error)
        slot.suspicion = slot.suspicion or error
        slot.calls.clear()
        slot.back_off(SUSPECT_INTERVAL_S)

    def _replace(self, slot: _WorkerSlot, error: Exception) -> None:
        """Kill the worker, report why, and schedule its successor after the back-off; raises GiveUp."""
        slot.calls.clear()
        slot.suspicion = None
        replace_failed(
            slot,
            error,
            who=f"worker {slot.worker_id}",
            process=slot.answer,
            stderr=stderr_tail(stderr_path(self._run_dir, slot.worker_id)),
            notices=self._notices,
            limit=self._config.cluster.max_worker_restarts,
        )
