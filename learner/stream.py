"""The queue between the workers' rollouts and the learner's batches, which drops stale rollouts.

Invariant: a rollout is trained on at most once, and only if it is of this run epoch and at most `max_policy_lag`
versions old when its batch is taken; every other rollout is dropped and counted.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from actors.rollout import Rollout, Version
from configs.schema import LearnerConfig

LOG = logging.getLogger(__name__)
REMEMBERED_NUMBERS = 128
"""Sequence numbers remembered per worker; fewer rollouts are in flight, and only those can arrive out of order."""


class RolloutStream:
    """A FIFO of fresh rollouts, taken in batches of `rollouts_per_batch`. It holds less than one batch. A rollout whose
    environments were all lost keeps its place but does not count towards the batch, because its episodes went on."""

    def __init__(self, config: LearnerConfig, on_stale: Callable[[Rollout], None] = lambda rollout: None) -> None:
        """`on_stale` is called with each rollout of this epoch that is dropped, for its age or at the end of the epoch,
        before a later rollout of the same worker is returned."""
        self._on_stale = on_stale
        self._batch_size, self._max_lag = config.rollouts_per_batch, config.max_policy_lag
        self._waiting: list[Rollout] = []
        self._seen: dict[str, set[int]] = {}  # per worker, one entry per worker and restart of this epoch
        self._dropped_stale = 0

    def put(self, rollout: Rollout, policy_version: Version) -> list[Rollout] | None:
        """Append a rollout; returns the next batch if it is full, for the learner at `policy_version`. Raises
        RuntimeError for a rollout of a version that this learner has not published."""
        if rollout.policy_version > policy_version:
            raise RuntimeError(
                f"worker {rollout.worker_id} sent a rollout of policy version {rollout.policy_version}, but the newest"
                f" is {policy_version}: it has weights of another run or of a later epoch; stop that run's workers"
            )
        if self._is_new(rollout):
            self._waiting.append(rollout)
        epoch, newest = policy_version
        oldest = epoch, newest - self._max_lag
        fresh = [waiting for waiting in self._waiting if waiting.policy_version >= oldest]
        for waiting in self._waiting:
            if waiting.policy_version < oldest:
                self._dropped_stale += 1
                if waiting.policy_version[0] == epoch:
                    self._on_stale(waiting)
        is_full = sum(rollout.num_steps > 0 for rollout in fresh) >= self._batch_size
        self._waiting = [] if is_full else fresh
        return fresh if is_full else None

    def drop_waiting(self) -> None:
        """Drop the rollouts that wait for a batch, at the end of this epoch, and call `on_stale` with each."""
        for rollout in self._waiting:
            self._on_stale(rollout)
        self._waiting = []

    def metrics(self) -> dict[str, float]:
        """`rollouts_dropped_stale`: rollouts dropped for their age or epoch, over the whole run."""
        return {"rollouts_dropped_stale": self._dropped_stale}

    def state_dict(self) -> dict[str, Any]:
        """The counter only: the waiting rollouts belong to this epoch, and no later epoch may train on them."""
        return {"dropped_stale": self._dropped_stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._dropped_stale = state["dropped_stale"]

    def _is_new(self, rollout: Rollout) -> bool:
        seen, number = self._seen.setdefault(rollout.worker_id, set()), rollout.sequence_number
        oldest = min(seen) if len(seen) == REMEMBERED_NUMBERS else -1
        if number in seen or number < oldest:
            LOG.warning("dropped rollout %d of worker %s: it was received before", number, rollout.worker_id)
            return False
        seen.discard(oldest)
        seen.add(number)
        return True
