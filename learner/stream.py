"""From the workers' rollouts to training batches: which rollouts count, and when a batch is full.

Invariant: a rollout is trained on at most once, and only where it is of this run epoch and at most `max_policy_lag`
versions old when its batch is taken; every other one is dropped and counted.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from actors.rollout import Rollout, Version
from configs.schema import LearnerConfig

LOG = logging.getLogger(__name__)
REMEMBERED_NUMBERS = 128
"""Sequence numbers remembered of each worker; rollouts in flight, the only ones that can change places, are fewer."""


class RolloutStream:
    """A FIFO of admitted rollouts, taken in batches of `rollouts_per_batch`; it never holds more than one batch, those of which every
    environment is lost not counted: they keep their place, because their episodes went on."""

    def __init__(self, config: LearnerConfig, on_stale: Callable[[Rollout], None] = lambda rollout: None) -> None:
        """`on_stale` is told of each rollout of this epoch that is dropped for its age or for the epoch's end, before a later one of its worker is handed out."""
        self._on_stale = on_stale
        self._batch_size, self._max_lag = config.rollouts_per_batch, config.max_policy_lag
        self._waiting: list[Rollout] = []
        self._seen: dict[str, set[int]] = {}  # per worker, one entry per worker and restart of this epoch
        self._dropped_stale = 0

    def put(self, rollout: Rollout, policy_version: Version) -> list[Rollout] | None:
        """Take a rollout in; the next batch, once it is full, for the learner at `policy_version`.

        Raises RuntimeError for a rollout of a version that this learner has not published.
        """
        if rollout.policy_version > policy_version:
            raise RuntimeError(
                f"worker {rollout.worker_id} sent a rollout of policy version {rollout.policy_version}, but the newest is {policy_version}:"
                " it was given weights of another run or of a later epoch; stop that run's workers"
            )
        if self._is_new(rollout):
            self._waiting.append(rollout)
        fresh = [waiting for waiting in self._waiting if self._is_fresh(waiting, policy_version)]
        for stale in self._waiting:
            if stale.policy_version[0] == policy_version[0] and not self._is_fresh(stale, policy_version):
                self._on_stale(stale)
        self._dropped_stale += len(self._waiting) - len(fresh)
        if sum(rollout.num_steps > 0 for rollout in fresh) < self._batch_size:
            self._waiting = fresh
            return None
        self._waiting = []
        return fresh

    def drop_waiting(self) -> None:
        """At the end of this epoch: what waits for a batch is told to `on_stale` and dropped."""
        for rollout in self._waiting:
            self._on_stale(rollout)
        self._waiting = []

    def metrics(self) -> dict[str, float]:
        """`rollouts_dropped_stale`: dropped for their age or their epoch, over the whole run."""
        return {"rollouts_dropped_stale": self._dropped_stale}

    def state_dict(self) -> dict[str, Any]:
        """Counters only: rollouts that wait belong to this epoch, so no later one may train on them."""
        return {"dropped_stale": self._dropped_stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._dropped_stale = state["dropped_stale"]

    def _is_fresh(self, rollout: Rollout, policy_version: Version) -> bool:
        epoch, n = policy_version
        return rollout.policy_version[0] == epoch and n - rollout.policy_version[1] <= self._max_lag

    def _is_new(self, rollout: Rollout) -> bool:
        seen, number = self._seen.setdefault(rollout.worker_id, set()), rollout.sequence_number
        full = len(seen) == REMEMBERED_NUMBERS
        if number in seen or (full and number < min(seen)):
            LOG.warning("dropped rollout %d of worker %s: it has been taken in before", number, rollout.worker_id)
            return False
        if full:
            seen.remove(min(seen))
        seen.add(number)
        return True
