"""`JudgeOfLabels`: the judge that gave the labels of a run.

Invariant: labels of one judge only are kept, over restarts of the service and of the run. With the first answer of
another judge at the same address the former's labels are all dropped, with a warning. A former judge that returns is
refused, since two would answer at the address in turn.
"""

import dataclasses
import logging
import threading
from collections.abc import Mapping
from typing import Any

from llm_server.annotation import ServiceDescription
from llm_server.client import AnnotationRefused

LOG = logging.getLogger(__name__)


class JudgeOfLabels:
    """The current judge and the former ones; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: ServiceDescription | None = None
        self._former: set[tuple[str, str, str]] = set()

    @property
    def now(self) -> ServiceDescription | None:
        """The current judge's first description, whose theta holds for all its labels. None before any answer."""
        return self._now

    def connected(self, said: ServiceDescription, has_labels: bool) -> None:
        """Note a service's description. AnnotationRefused for a judge whose labels were dropped."""
        with self._lock:
            if said.identity in self._former:
                assert self._now is not None
                raise AnnotationRefused(
                    f"two judges answer in turn: {_named(said)}, whose labels were dropped, is back in place of"
                    f" {_named(self._now)}; let one of them answer, and start the run again"
                )
            if self._now is None and not has_labels:
                self._now = said

    def was_replaced(self, said: ServiceDescription) -> bool:
        """Whether `said` describes a judge whose labels were dropped."""
        with self._lock:
            return said.identity in self._former

    def takes_over(self, said: ServiceDescription, num_labels: int) -> bool:
        """Whether another judge than that of the `num_labels` labels so far answers; they must then be dropped."""
        with self._lock:
            if self._now is not None and self._now.identity == said.identity:
                return False
            if self._now is not None:
                self._former.add(self._now.identity)
            former = _named(self._now) if self._now else "an unknown one"
            effect = f"{num_labels} are dropped, every caption is asked anew, and the reward model starts again"
            judges = f"{_named(said)} in place of {former}"
            LOG.warning("another judge answers: %s. Its labels are not mixed with the former's: %s", judges, effect)
            self._now = said
            return True

    def state_dict(self) -> dict[str, Any]:
        """The current judge."""
        with self._lock:
            if self._now is None:
                return {}
            return dataclasses.asdict(dataclasses.replace(self._now, forward_passes=0, engine_busy_s=0.0))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        with self._lock:
            self._now = ServiceDescription(**state) if state else None


def _named(said: ServiceDescription) -> str:
    return f"{said.model} ({said.engine}, {said.fingerprint[:12]}; rubric {said.rubric_id} {said.rubric_hash[:12]})"
