"""The inference actors of `actors.inference=central` and their supervision.

    an inference actor     its workers
    is starting            are not started
    answers                are started on its node, and connect to its socket
    is replaced            are ended with it, at nobody's cost, and started beside its successor
    ends before that is    fail with `the inference server has ended`, each a failure of its own
    known

Invariant: no call is made per step; an actor has at most one unanswered call of each kind, so weights are the newest
when they are sent and nothing piles up at one that hangs. One that dies, or gives no sign of life for half of
`worker_timeout_s`, is replaced within the budget of a worker.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, RayError

from actors.environments.vector import EnvironmentSpec
from actors.goals.sheet import GoalSheet
from actors.policy import PolicySnapshot, bound_kept_kernels
from cluster.on_ray.failures import ProcessId, replace_failed, this_process
from cluster.on_ray.nodes import enter_run, start_actor
from cluster.on_ray.placement import Request
from cluster.on_ray.slot import Slot, SlotState, answered
from cluster.run.logs import StderrFile, stderr_path, stderr_tail
from cluster.run.temporary import sockets_directory
from cluster.supervision import Notices
from cluster.wiring import build_inference_server
from configs.schema import RunConfig

POLL_INTERVAL_S = 1.0
KEPT_KERNELS = 64


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """What an inference actor says of itself."""

    process: ProcessId
    path: str
    """Of its socket, on its node."""
    stalled_s: float
    """For how long it has not looked for requests."""


@ray.remote(max_restarts=0, concurrency_groups={"control": 1})  # type: ignore[call-overload]
class InferenceActor:
    """An inference server."""

    def __init__(self, config: RunConfig, spec: EnvironmentSpec, index: int, incarnation: str) -> None:
        name = f"inference-{index}.{incarnation}"
        self._stderr = StderrFile(stderr_path(Path(config.run_dir), name))
        enter_run(config)
        bound_kept_kernels(KEPT_KERNELS)
        torch.set_num_threads(config.actors.torch_threads)
        self._path = sockets_directory(config.run_dir) / name
        self._server = build_inference_server(config, spec, index, self._path)

    def serve(self) -> None:
        """Answer workers until `close`; raises what ends it."""
        self._server.serve()

    @ray.method(concurrency_group="control")
    def sign(self) -> SignOfLife:
        """Answered while it serves."""
        self._stderr.trim()
        return SignOfLife(this_process(), str(self._path), time.monotonic() - self._server.turned_at)

    @ray.method(concurrency_group="control")
    def load(self, snapshot: PolicySnapshot | None, goals: GoalSheet | None) -> None:
        """Set the newest version of the policy, and the newest goals that it reads; None for neither yet."""
        if goals is not None:
            self._server.load_goals(goals.vectors)
        if snapshot is not None:
            self._server.load(snapshot)

    @ray.method(concurrency_group="control")
    def close(self) -> None:
        """End `serve`."""
        self._server.stop()
        self._stderr.discard()


@dataclass(slots=True, kw_only=True, eq=False)
class _ServerSlot(Slot):
    """One inference actor, which answers with its SignOfLife."""

    index: int
    interval_s: float = POLL_INTERVAL_S
    name: str = ""
    serving: Any = None
    """The call of `serve`, answered when the actor ends; None when that can no longer be learnt from it."""
    loading: Any = None
    """The unanswered call of `load`."""
    loaded: tuple[Any, Any] = (None, None)
    """The references of the newest snapshot and of the newest goals that were sent."""
    goals: Any = None
    """The reference of the newest goals that it has."""
    reached_at: float = field(default_factory=time.monotonic)
    """When it last answered, or was started."""


class RayInference:
    """Handle of a run's inference actors; lives in the learner's process."""

    def __init__(
        self, config: RunConfig, spec: EnvironmentSpec, run_epoch: int, request: Request, notices: Notices
    ) -> None:
        self._config, self._spec, self._run_epoch, self._request = config, spec, run_epoch, request
        self._notices = notices
        self._limit_s = config.cluster.worker_timeout_s / 2
        self._snapshot: Any = None
        self._goals: Any = None
        self._slots = [_ServerSlot(index=index) for index in range(request.count)]
        self.tend()

    def address(self, worker_index: int) -> tuple[str, str] | None:
        """Node id and socket of the server of a worker; None where it does not run."""
        life: SignOfLife | None = self._slot_of(worker_index).answer
        return None if life is None else (life.process.node_id, life.path)

    def delivered(self, worker_index: int) -> None:
        """Note that a worker has delivered a rollout: its server makes progress."""
        self._slot_of(worker_index).failures = 0

    def publish(self, snapshot: ray.ObjectRef) -> None:
        """Send the newest snapshot to all actors, each when it has taken the last."""
        self._snapshot = snapshot
        self._send_newest()

    def publish_goals(self, sheet: ray.ObjectRef) -> None:
        """The same for the newest goals."""
        self._goals = sheet
        self._send_newest()

    def goals_of(self, worker_index: int) -> ray.ObjectRef | None:
        """The newest goals that the server of a worker has; None without any."""
        return self._slot_of(worker_index).goals

    @property
    def calls(self) -> Sequence[ray.ObjectRef]:
        """Unanswered calls after whose answers `tend` has something to do."""
        return [call for slot in self._slots for call in (slot.call, slot.serving) if call is not None]

    @property
    def due_at(self) -> float:
        """When the next actor may be started, where there are no `calls`."""
        return min(slot.due_at for slot in self._slots)

    @property
    def waiting(self) -> str | None:
        """What is missing before all workers can start."""
        missing = sum(slot.state is not SlotState.ALIVE for slot in self._slots)
        each = f"{self._request.cpus:g} CPU" + (f", {self._request.gpus:g} GPU" if self._request.gpus else "")
        return f"{missing} of {len(self._slots)} inference actors to start ({each} each)" if missing else None

    def tend(self) -> None:
        """Start, poll and replace actors, and send them weights; never waits. Raises GiveUp when a budget is spent."""
        for slot in self._slots:
            if slot.state is SlotState.EMPTY:
                self._start(slot)
            elif slot.may_ask:
                slot.ask(slot.actor.sign.remote())
        for slot in answered(self._slots):
            try:
                life: SignOfLife = slot.take_answer()
            except RayError as error:
                self._failed(slot, error)
                continue
            slot.reached_at = time.monotonic()
            if life.stalled_s > self._limit_s:
                self._replace(slot, self._too_late())
        for slot in self._slots:
            if slot.serving is not None and ray.wait([slot.serving], timeout=0)[0]:
                self._ended(slot)
            elif slot.state is SlotState.ALIVE and slot.silent_s > self._limit_s:
                self._replace(slot, self._too_late())
        self._send_newest()

    def close(self) -> None:
        """End all actors, by force where they do not end by themselves."""
        closing = [slot.actor.close.remote() for slot in self._slots if slot.state is SlotState.ALIVE]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=1.0)
        for slot in self._slots:
            slot.end()

    def _slot_of(self, worker_index: int) -> _ServerSlot:
        return self._slots[worker_index % len(self._slots)]

    def _start(self, slot: _ServerSlot) -> None:
        incarnation = f"{self._run_epoch}-{slot.losses}"
        arguments = (self._config, self._spec, slot.index, incarnation)
        slot.start(start_actor(InferenceActor, self._request, *arguments, index=slot.index))
        slot.name = f"inference-{slot.index}.{incarnation}"
        slot.reached_at, slot.loading, slot.loaded, slot.goals = time.monotonic(), None, (None, None), None
        slot.serving = slot.actor.serve.remote()
        slot.ask(slot.actor.sign.remote())

    def _send_newest(self) -> None:
        newest = self._snapshot, self._goals
        for slot in self._slots:
            if slot.loading is not None and ray.wait([slot.loading], timeout=0)[0]:
                slot.loading, slot.goals = None, slot.loaded[1]  # whether it failed, other calls tell
            if slot.actor is not None and slot.loading is None and slot.loaded != newest:
                slot.loading, slot.loaded = slot.actor.load.remote(*newest), newest

    def _ended(self, slot: _ServerSlot) -> None:
        serving, slot.serving = slot.serving, None
        try:
            ray.get(serving)
        except RayError as error:
            self._failed(slot, error)

    def _failed(self, slot: _ServerSlot, error: RayError) -> None:
        """Replace the actor, unless it may only be out of reach for a while."""
        if not isinstance(error, ActorUnavailableError) or time.monotonic() - slot.reached_at > self._limit_s:
            self._replace(slot, error)

    def _too_late(self) -> TimeoutError:
        limit = f"half of cluster.worker_timeout_s = {self._config.cluster.worker_timeout_s:g} s"
        return TimeoutError(f"no sign of life within {limit}; the process is ended")

    def _replace(self, slot: _ServerSlot, error: Exception) -> None:
        life: SignOfLife | None = slot.answer
        stderr = stderr_tail(stderr_path(Path(self._config.run_dir), slot.name))
        slot.serving = slot.loading = None
        replace_failed(
            slot,
            error,
            who=f"the inference actor {slot.name}",
            process=life.process if life else None,
            stderr=stderr,
            notices=self._notices,
            limit=self._config.cluster.max_worker_restarts,
        )
