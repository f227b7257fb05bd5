"""The learner actor, which is the training loop in a process of its own, and the driver's view of it: shows its
progress, forwards stop requests, and restarts it from the last checkpoint.

Invariant: workers, annotator and the other learners are its children and die with it; control calls have their own
concurrency group, so they are answered while it trains. Each start is its own run epoch, as if the command had been run
again; a learner that writes no new checkpoint between two failures, or whose failure would recur, ends the run.
"""

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayTaskError

from actors.environments.vector import EnvironmentSpec
from cluster.loop import TrainingLoop
from cluster.on_ray.annotation import RayAnnotation
from cluster.on_ray.failures import KILL_S, LearnerLost, ProcessId, actor_failure, this_process
from cluster.on_ray.peers import RayPeers, enter_learner
from cluster.on_ray.placement import Request
from cluster.on_ray.slot import Slot, SlotState, answered
from cluster.on_ray.workers import RayWorkers
from cluster.run.directory import RunDirectory
from cluster.run.session import RunSession
from cluster.supervision import GiveUp, restart_pause_s
from configs.errors import one_line
from configs.schema import RunConfig
from learner.checkpoint import CheckpointError
from learner.data_parallel import ExchangeFailed

LOG = logging.getLogger(__name__)
POLL_INTERVAL_S = 0.5
SAY_INTERVAL_S, LONGEST_SAY_INTERVAL_S = 10.0, 600.0


@ray.remote(max_restarts=0, concurrency_groups={"control": 2})  # type: ignore[call-overload]
class LearnerActor:
    """The training loop, which owns workers, annotator and the other learners."""

    def __init__(
        self, config: RunConfig, spec: EnvironmentSpec, run_epoch: int, requests: dict[str, Request], nonce: str
    ) -> None:
        RunDirectory(Path(config.run_dir)).check_nonce(nonce)
        self._run = enter_learner(config)
        self._config, self._spec, self._run_epoch, self._requests = config, spec, run_epoch, requests
        self._loop: TrainingLoop | None = None
        self._annotation: RayAnnotation | None = None
        self._peers: RayPeers | None = None
        self._stop_requested = False

    def run(self) -> dict[str, Any]:
        """Train to the end or to `stop`; the summary."""
        if self._config.cluster.num_learners > 1:
            self._peers = RayPeers(self._config, self._spec, self._run_epoch, self._requests["learner"])
        self._annotation = annotation = RayAnnotation(
            self._config, self._run_epoch, self._requests.get("annotator"), self._requests.get("replica")
        )
        requests = self._requests["worker"], annotation, self._requests.get("inference")
        workers = RayWorkers(self._config, self._spec, self._run_epoch, *requests)
        try:
            self._loop = TrainingLoop(self._config, self._run, self._run_epoch, workers, annotation)
            if self._peers is not None:
                self._peers.join(self._loop.learner, workers.reference, lambda: self._stop_requested)
            if self._stop_requested:
                self._loop.stop()
            return self._loop.run()
        except ExchangeFailed:
            if self._peers is not None:
                self._peers.explain()
            raise
        finally:
            workers.close()
            annotation.close()
            if self._peers is not None:
                self._peers.close()

    @ray.method(concurrency_group="control")
    def progress(self) -> dict[str, Any]:
        """The newest metrics, and what is waited for; before training only the process and what is waited for. Raises
        LearnerLost: the update in progress may wait for that learner for ever."""
        if self._peers is not None:
            self._peers.check()
        line = {"process": this_process(), **(self._loop.progress() if self._loop is not None else {})}
        parts = [part.waiting for part in (self._peers, self._annotation) if part is not None]
        return {**line, "waiting": "; ".join(filter(None, (line.get("waiting"), *parts))) or None}

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Checkpoint and end after the update in progress."""
        self._stop_requested = True
        if self._loop is not None:
            self._loop.stop()


class RunFailed(RuntimeError):
    """The run failed before its goal; the message is for the user."""


class LearnerWatch:
    """Watches one learner after the other."""

    def __init__(self, session: RunSession) -> None:
        self._session, self._config, self._run, self._say = session, session.config, session.run, session.console.say
        self._slot = Slot(interval_s=POLL_INTERVAL_S)
        self._newest = self._newest_checkpoint()
        self._process: ProcessId | None = None
        self._has_trained = False
        self._waits_for: str | None = None
        self._waits_since = 0.0
        self._say_after_s = SAY_INTERVAL_S

    def follow(self, learner: Any, run: ray.ObjectRef) -> dict[str, Any]:
        """Show the progress of `learner` until its call `run` ends; the summary. After a stop request it has the
        shutdown budget.

        Raises RunFailed, or the learner's error, after which `back_off` decides."""
        self._process, self._has_trained = None, False
        slot, cluster = self._slot, self._config.cluster
        slot.start(learner)
        deadline: float | None = None
        first_step: int | None = None
        while True:
            if slot.may_ask:
                slot.ask(learner.progress.remote())
            if run in ray.wait([call for call in (run, slot.call) if call is not None], timeout=POLL_INTERVAL_S)[0]:
                return ray.get(run)
            now = time.monotonic()
            if self._session.stop_requested() and deadline is None:
                learner.stop.remote()
                deadline = now + cluster.shutdown_budget_s
            if deadline is not None and now > deadline:
                limit = f"cluster.shutdown_budget_s = {cluster.shutdown_budget_s:g} s"
                raise RunFailed(f"the learner did not stop within {limit}; ended by force")
            if answered([slot]):
                line = dict(slot.take_answer())
                self._process = line.pop("process")
                self._say_waiting(line.pop("waiting", None))
                if "env_steps" in line:
                    first_step = line["env_steps"] if first_step is None else first_step
                    self._has_trained = line["env_steps"] > first_step
                    self._session.console.update(line)
            elif slot.state is SlotState.STARTING:
                if self._is_silent(cluster.placement_timeout_s):
                    limit = f"cluster.placement_timeout_s = {cluster.placement_timeout_s:g} s"
                    free = ray.available_resources()
                    raise RunFailed(f"the learner was not placed within {limit}; free resources: {free}")
                if deadline is None:
                    self._say_waiting("the learner to start")
            elif self._is_silent(cluster.learner_timeout_s):  # control calls are answered while it trains
                limit = f"cluster.learner_timeout_s = {cluster.learner_timeout_s:g} s"
                raise TimeoutError(f"it answered nothing within {limit}; the process is ended")

    def _is_silent(self, limit_s: float) -> bool:
        """Whether the learner has not answered for `limit_s`, and does not now: this process may have been stopped."""
        slot = self._slot
        return slot.silent_s > limit_s and not ray.wait([slot.call], timeout=2 * POLL_INTERVAL_S)[0]

    def _say_waiting(self, what: str | None) -> None:
        """Say what the run waits for, after 10 s and then at doubling intervals, with the seconds of this wait."""
        now = time.monotonic()
        if what != self._waits_for:
            self._waits_for, self._waits_since, self._say_after_s = what, now, SAY_INTERVAL_S
        if what is not None and now - self._waits_since > self._say_after_s:
            self._say_after_s += min(self._say_after_s, LONGEST_SAY_INTERVAL_S)
            self._say(f"waiting for {what}, {now - self._waits_since:.0f} s")

    def back_off(self, error: Exception) -> None:
        """End the failed learner and wait until the next may start; raises RunFailed where it must not."""
        self._slot.end()
        failure, newest = actor_failure(error, self._process, ""), self._newest_checkpoint()
        if newest != self._newest:
            self._newest, self._slot.failures = newest, 0
        self._slot.lost(is_own_fault=not failure.is_node_loss)
        is_lost_peer = isinstance(getattr(error, "cause", None), LearnerLost)
        # An error of its own code before the first update would recur.
        is_final = (
            isinstance(error, RayTaskError)
            and not is_lost_peer
            and (isinstance(error.cause, GiveUp | CheckpointError | ValueError) or not self._has_trained)
        )
        if is_final or getattr(error, "actor_init_failed", False) or self._session.stop_requested():
            raise RunFailed(remote_cause(error)) from error
        if failure.is_node_loss and self._config.cluster.mode == "local":
            raise RunFailed("Ray's own processes on this machine have ended, and everything on them") from error
        pause_s = 0.0
        if not failure.is_node_loss:
            limit, what = self._config.cluster.max_learner_restarts, f"the learner failed: {failure.cause}"
            try:
                pause_s = restart_pause_s(self._slot.failures, what, limit, "cluster.max_learner_restarts")
            except GiveUp as spent:
                raise RunFailed(str(spent)) from error
        LOG.error("the learner failed: %s", error)
        where = f"checkpoint {newest}" if newest else "its beginning"
        self._say(
            one_line(f"the learner failed: {failure.cause}; it is started again, and the run goes on from {where}")
        )
        # Both would write the same checkpoints, so a learner that was killed gets the time to end.
        kill_s = KILL_S if is_lost_peer or isinstance(error, TimeoutError | ActorUnavailableError) else 0.0
        self._slot.back_off(max(pause_s, kill_s))
        while self._slot.state is SlotState.BACKING_OFF and not self._session.stop_requested():
            time.sleep(0.1)

    def _newest_checkpoint(self) -> str:
        with suppress(OSError):
            return (self._run.checkpoints / "latest").read_text().strip()
        return ""


def remote_cause(error: Exception) -> str:
    """The cause for the user: the remote exception's text, or the last line of a traceback."""
    cause = getattr(error, "cause", None)
    text = str(cause or error).strip()
    return text.splitlines()[-1] if cause is None and "Traceback" in text else text
