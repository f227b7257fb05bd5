"""The driver's view of the learner actor: shows its progress, forwards stop requests, and restarts it from the last
checkpoint.

Invariant: each start is its own run epoch, as if the command had been run again; a learner that writes no new
checkpoint between two failures, or whose failure would recur, ends the run.
"""

import logging
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayTaskError

from cluster.on_ray.failures import KILL_S, ProcessId, actor_failure
from cluster.run.session import RunSession
from cluster.supervision import GiveUp, RestartBudget
from configs.errors import one_line
from learner.checkpoint import CheckpointError

LOG = logging.getLogger(__name__)
POLL_INTERVAL_S = 0.5
SAY_INTERVAL_S, LONGEST_SAY_INTERVAL_S = 10.0, 600.0


class RunFailed(RuntimeError):
    """The run failed before its goal; the message is for the user."""


class LearnerWatch:
    """Watches one learner after the other."""

    def __init__(self, session: RunSession) -> None:
        config = session.config
        self._session, self._config, self._run, self._say = session, config, session.run, session.console.say
        self._budget = RestartBudget(config.cluster.max_learner_restarts, "cluster.max_learner_restarts")
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
        started = answered = time.monotonic()
        deadline: float | None = None
        cluster = self._config.cluster
        first_step: int | None = None
        while True:
            if ray.wait([run], timeout=POLL_INTERVAL_S)[0]:
                return ray.get(run)
            now = time.monotonic()
            if self._session.stop.requested and deadline is None:
                learner.stop.remote()
                deadline = now + cluster.shutdown_budget_s
            if deadline is not None and now > deadline:
                limit = f"cluster.shutdown_budget_s = {cluster.shutdown_budget_s:g} s"
                raise RunFailed(f"the learner did not stop within {limit}; ended by force")
            try:
                line = ray.get(learner.progress.remote(), timeout=2 * POLL_INTERVAL_S)
            except GetTimeoutError:
                if self._process is None:
                    if now - started > cluster.placement_timeout_s:
                        limit = f"cluster.placement_timeout_s = {cluster.placement_timeout_s:g} s"
                        free = ray.available_resources()
                        raise RunFailed(f"the learner was not placed within {limit}; free resources: {free}") from None
                    if deadline is None:
                        self._say_waiting("the learner to start")
                elif now - answered > cluster.learner_timeout_s:  # control calls are answered while it trains
                    limit = f"cluster.learner_timeout_s = {cluster.learner_timeout_s:g} s"
                    raise TimeoutError(f"it answered nothing within {limit}; the process is ended") from None
                continue
            answered = now
            self._process = line.pop("process")
            self._say_waiting(line.pop("waiting", None))
            if "env_steps" in line:
                first_step = line["env_steps"] if first_step is None else first_step
                self._has_trained = line["env_steps"] > first_step
                self._session.console.update(line)

    def _say_waiting(self, what: str | None) -> None:
        """Say what the run waits for, after 10 s and then at doubling intervals, with the seconds of this wait."""
        now = time.monotonic()
        if what != self._waits_for:
            self._waits_for, self._waits_since, self._say_after_s = what, now, SAY_INTERVAL_S
        if what is not None and now - self._waits_since > self._say_after_s:
            self._say_after_s += min(self._say_after_s, LONGEST_SAY_INTERVAL_S)
            self._say(f"waiting for {what}, {now - self._waits_since:.0f} s")

    def back_off(self, error: Exception) -> None:
        """Wait until the failed learner may be restarted; raises RunFailed where it must not be."""
        failure = actor_failure(error, self._process, "")
        # An error of its own code before the first update would recur.
        is_final = isinstance(error, RayTaskError) and (
            isinstance(error.cause, GiveUp | CheckpointError | ValueError) or not self._has_trained
        )
        if is_final or getattr(error, "actor_init_failed", False) or self._session.stop.requested:
            raise RunFailed(remote_cause(error)) from error
        if failure.is_node_loss and self._config.cluster.mode == "local":
            raise RunFailed("Ray's own processes on this machine have ended, and everything on them") from error
        newest = self._newest_checkpoint()
        if newest != self._newest:
            self._newest = newest
            self._budget.progressed("learner")
        pause_s = 0.0
        try:
            if not failure.is_node_loss:
                pause_s = self._budget.failed("learner", f"the learner failed: {failure.cause}")
        except GiveUp as spent:
            raise RunFailed(str(spent)) from error
        LOG.error("the learner failed: %s", error)
        where = f"checkpoint {newest}" if newest else "its beginning"
        self._say(
            one_line(f"the learner failed: {failure.cause}; it is started again, and the run goes on from {where}")
        )
        # Both would write the same checkpoints, so a learner that was killed gets the time to end.
        kill_s = KILL_S if isinstance(error, TimeoutError | ActorUnavailableError) else 0.0
        deadline = time.monotonic() + max(pause_s, kill_s)
        while time.monotonic() < deadline and not self._session.stop.requested:
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
