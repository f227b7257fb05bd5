"""`JudgeOfLabels`: by which judge the labels of a run are.

Invariant: labels of one judge only are kept, over restarts of the service and of the run. Another judge at the same address takes the
place of the former, whose labels are all dropped, in words, with its first answer (until then all are of the former); one that returns after that is refused, since two would answer there in turn.
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
    """Who judges and who did; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: ServiceDescription | None = None
        self._former: set[tuple[str, str, str]] = set()

    @property
    def now(self) -> ServiceDescription | None:
        """As it first described itself: its theta holds for all its labels. None until a service has answered."""
        return self._now

    def connected(self, said: ServiceDescription, has_labels: bool) -> None:
        """A service has described itself. AnnotationRefused for a judge whose labels were dropped."""
        with self._lock:
            if said.identity in self._former:
                assert self._now is not None
                raise AnnotationRefused(
                    f"two judges answer in turn: {_named(said)}, whose labels were dropped, is back in place of {_named(self._now)};"
                    " let one of them answer, and start the run again"
                )
            if self._now is None and not has_labels:
                self._now = said

    def was_replaced(self, said: ServiceDescription) -> bool:
        """Whether `said` is of a judge whose labels were dropped."""
        with self._lock:
            return said.identity in self._former

    def takes_over(self, said: ServiceDescription, num_labels: int) -> bool:
        """Whether an answer by `said` is the first of another judge than the `num_labels` labels so far, which are then to be dropped."""
        with self._lock:
            if self._now is not None and self._now.identity == said.identity:
                return False
            if self._now is not None:
                self._former.add(self._now.identity)
            LOG.warning(
                "another judge answers: %s in place of %s. Its labels are not mixed with the former's: %d are dropped, every caption is asked"
                " anew, and the reward model starts again",
                _named(said),
                _named(self._now) if self._now else "one that is not known",
                num_labels,
            )
            self._now = said
            return True

    def state_dict(self) -> dict[str, Any]:
        """The present judge."""
        with self._lock:
            return (
                {}
                if self._now is None
                else dataclasses.asdict(dataclasses.replace(self._now, forward_passes=0, engine_busy_s=0.0))
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        with self._lock:
            self._now = ServiceDescription(**state) if state else None


def _named(said: ServiceDescription) -> str:
    return f"{said.model} ({said.engine}, {said.fingerprint[:12]}; rubric {said.rubric_id} {said.rubric_hash[:12]})"
