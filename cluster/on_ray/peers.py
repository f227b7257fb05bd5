"""The learners besides the first one (`cluster.num_learners`): actors that compute their part of each update, and the
first learner's view of them.

Invariant: they hold nothing that the first learner does not have, and are its children. One that dies, fails or hangs
ends the first learner too (`LearnerLost`, noticed while it waits for them), and with it all: the run goes on from the
last checkpoint with new ones, as after the loss of a single learner.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from actors.environments.vector import EnvironmentSpec
from actors.policy import bound_kept_kernels
from actors.rollout import Rollout
from cluster.on_ray.failures import LearnerLost, ProcessId, actor_failure, this_process
from cluster.on_ray.nodes import enter_run, start_actor
from cluster.on_ray.placement import Request, as_text
from cluster.on_ray.slot import Slot, SlotState, answered
from cluster.run.directory import RunDirectory
from cluster.supervision import GiveUp
from configs.schema import RunConfig
from configs.terms import resolved_terms
from learner.data_parallel import ExchangeFailed, Meeting, Part, meet, open_meeting
from learner.update import Learner

KEPT_KERNELS = 16
"""Fewer than an update uses: 110 MB less, and no growth with new shapes, for updates that take 4 % longer."""
POLL_INTERVAL_S = 0.5
START_POLL_S = 0.1
SYMPTOM_S = 5.0
"""A learner whose exchange failed is a symptom; the learner that was lost is noticed within this time."""


def enter_learner(config: RunConfig) -> RunDirectory:
    """The run's directory, in a learner's process, which is set up for updates."""
    bound_kept_kernels(KEPT_KERNELS)
    if config.learner.torch_threads:
        torch.set_num_threads(config.learner.torch_threads)
    return enter_run(config)


@ray.remote(max_restarts=0, concurrency_groups={"control": 1})  # type: ignore[call-overload]
class PeerActor:
    """A learner that computes its part of each update."""

    def __init__(self, config: RunConfig, spec: EnvironmentSpec, run_epoch: int) -> None:
        enter_learner(config)
        self._config, self._spec, self._run_epoch = config, spec, run_epoch
        self._learner: Learner | None = None

    @ray.method(concurrency_group="control")
    def hello(self) -> ProcessId:
        """Which process this is; answered while it computes, too."""
        return this_process()

    def join(self, meeting: Meeting, rank: int, state: Mapping[str, Any]) -> None:
        """Continue from the first learner's state, in its precision, and share its work from now on."""
        config = self._config
        settings = replace(config.learner, precision=state["precision"])
        self._learner = learner = Learner(
            self._spec,
            config.policy,
            settings,
            config.reward,
            run_epoch=self._run_epoch,
            seed=config.seed,
            terms=resolved_terms(config),
            goals=config.goals,
        )
        learner.continue_from(state)
        learner.share_work(meet(meeting, rank, learner.device, _address(config)))

    def take_part(self, part: Part, progress: float, *rollouts: Rollout) -> None:
        """Its part of an update, whose rollouts come by themselves."""
        assert self._learner is not None
        self._learner.take_part(replace(part, rollouts=rollouts), progress)


class RayPeers:
    """Handle of the other learners; lives in the first learner's process. `check` may be called from any thread."""

    def __init__(self, config: RunConfig, spec: EnvironmentSpec, run_epoch: int, request: Request) -> None:
        self._config, self._request = config, request
        self._slots = [Slot(interval_s=POLL_INTERVAL_S) for _ in range(1, request.count)]
        for rank, slot in enumerate(self._slots, 1):
            slot.start(start_actor(PeerActor, request, config, spec, run_epoch, index=rank))
        self._lock = threading.Lock()
        self._work: list[ray.ObjectRef] = []
        self._symptoms: dict[int, float] = {}  # rank -> when its exchange was seen to have failed
        self._reference: Callable[[Rollout], ray.ObjectRef] | None = None
        self._has_joined = False

    @property
    def waiting(self) -> str | None:
        """What is waited for before training; None where all have started."""
        starting = sum(slot.state is SlotState.STARTING for slot in self._slots)
        if self._has_joined or not self._slots:
            return None
        if not starting:
            return "the learners to meet"
        return f"{as_text({'learner': replace(self._request, count=starting)})} to start"

    def join(
        self, first: Learner, reference: Callable[[Rollout], ray.ObjectRef], stop_requested: Callable[[], bool]
    ) -> None:
        """Wait until all have started, and let them share the work of `first`; after a stop request, return without.
        `reference` is that of a rollout in the object store. Raises GiveUp and what `check` and `finish` raise."""
        self._reference = reference
        began, limit_s = time.monotonic(), self._config.cluster.placement_timeout_s
        while any(slot.state is SlotState.STARTING for slot in self._slots):
            self.check()
            if stop_requested():
                return
            if time.monotonic() - began > limit_s:
                limit = f"cluster.placement_timeout_s = {limit_s:g} s"
                free = ray.available_resources()
                raise GiveUp(f"not all learners were placed within {limit}: {self.waiting}; free resources: {free}")
            time.sleep(START_POLL_S)
        on_cuda, has_whole_gpus = first.device.type == "cuda", self._request.gpus >= 1
        address = _address(self._config)
        meeting, store = open_meeting(
            address,
            self._request.count,
            backend="nccl" if on_cuda and has_whole_gpus else "gloo",  # NCCL refuses learners that share a GPU
            device_type=first.device.type,
            timeout_s=self._config.cluster.learner_timeout_s,
        )
        state = ray.put(first.state_dict())
        self._work = [slot.actor.join.remote(meeting, rank, state) for rank, slot in enumerate(self._slots, 1)]
        exchange = meet(meeting, 0, first.device, address, store)
        self.finish()
        first.share_work(exchange, self)
        self._has_joined = True

    def hand_out(self, parts: Sequence[Part], progress: float) -> None:
        """Rollouts travel by reference: each learner takes them from the node that has them."""
        assert self._reference is not None
        self._work = [
            slot.actor.take_part.remote(replace(part, rollouts=()), progress, *map(self._reference, part.rollouts))
            for slot, part in zip(self._slots, parts[1:], strict=True)
        ]

    def finish(self) -> None:
        """Wait until the others have done their parts; raises ExchangeFailed where one has not."""
        try:
            ray.get(self._work)
        except RayError as error:
            raise ExchangeFailed(f"a learner did not finish its part: {error}") from error

    def check(self) -> None:
        """Raises LearnerLost where a learner has died or is silent for too long, and RuntimeError for an error of its
        own; it does not wait."""
        with self._lock:
            for rank, slot in enumerate(self._slots, 1):
                self._check_work(rank)
                if slot.may_ask:
                    slot.ask(slot.actor.hello.remote())
                if answered([slot]):
                    try:
                        slot.take_answer()
                    except RayError as error:
                        raise self._lost(rank, error) from error
                limit_s = self._config.cluster.learner_timeout_s
                if slot.state is SlotState.ALIVE and slot.silent_s > limit_s and not self._answers(slot):
                    limit = f"cluster.learner_timeout_s = {limit_s:g} s"
                    ray.kill(slot.actor)  # a stopped process does not notice the end of its owner
                    raise LearnerLost(f"{self._name(rank)} answered nothing within {limit}")

    def explain(self) -> None:
        """After a failed exchange: raises LearnerLost where a learner is found to be lost within a few seconds."""
        deadline = time.monotonic() + 2 * SYMPTOM_S
        while time.monotonic() < deadline:
            self.check()
            time.sleep(START_POLL_S)

    def close(self) -> None:
        """End them all, after which none is missed."""
        with self._lock:
            for slot in self._slots:
                slot.end()
            self._slots, self._work = [], []

    def _check_work(self, rank: int) -> None:
        work = self._work[rank - 1 : rank]
        if not work or not ray.wait(work, timeout=0)[0]:
            return
        try:
            ray.get(work)
        except RayTaskError as error:
            is_symptom = isinstance(error.cause, ExchangeFailed)
            if is_symptom and time.monotonic() - self._symptoms.setdefault(rank, time.monotonic()) < SYMPTOM_S:
                return
            raise self._lost(rank, error) from error
        except RayError as error:
            raise self._lost(rank, error) from error

    def _answers(self, slot: Slot) -> bool:
        """Whether it does now: this process may have been stopped itself."""
        return bool(ray.wait([slot.call], timeout=2 * POLL_INTERVAL_S)[0])

    def _lost(self, rank: int, error: Exception) -> Exception:
        text = f"{self._name(rank)} failed: {actor_failure(error, self._slots[rank - 1].answer, '').cause}"
        is_own_error = isinstance(error, RayTaskError) and not isinstance(error.cause, ExchangeFailed)
        would_recur = is_own_error or getattr(error, "actor_init_failed", False)
        return RuntimeError(text) if would_recur else LearnerLost(text)

    def _name(self, rank: int) -> str:
        process: ProcessId | None = self._slots[rank - 1].answer
        where = f" (process {process.pid} on {process.host})" if process else ""
        return f"learner {rank + 1} of {self._request.count}{where}"


def _address(config: RunConfig) -> str:
    """This machine's address, at which learners exchange their results."""
    return ray.util.get_node_ip_address() if config.cluster.mode == "connect" else "127.0.0.1"
