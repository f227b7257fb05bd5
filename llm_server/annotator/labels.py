"""`Labels`: the answers of a run's judge, counted and recorded.

Invariant: labels of one judge only are kept, over restarts of the service and of the run. With the first answer of
another judge at the same address the former's labels are all dropped, with a warning. A former judge that returns is
refused, since two would answer at the address in turn.
"""

import dataclasses
import logging
import threading
from collections.abc import Mapping
from typing import Any

from llm_server.annotation import JudgedCaption, MatchedCaption, ServiceDescription, Status
from llm_server.annotator.feedback import Answer, CaptionQuestions, judgement_of, passes_of
from llm_server.client import AnnotationRefused

LOG = logging.getLogger(__name__)
COUNTERS = (
    "annotations_total",
    "annotations_cached",
    "annotations_unparsed",
    "annotations_undecided",
    "annotations_rejected",
    "annotations_dropped",
    "forward_passes",
    "annotation_requests_failed",
)


class Labels:
    """The current judge, the former ones, and the counters of the run; thread-safe, but only one thread records."""

    def __init__(self, questions: CaptionQuestions) -> None:
        self.judge: ServiceDescription | None = None
        """The current judge's first description, whose theta holds for all its labels. None before any answer."""
        self.num_judges_replaced = 0
        """How often all labels were dropped because another judge answered, since this process started."""
        self._questions = questions
        self._lock = threading.RLock()
        self._former: set[tuple[str, str, str]] = set()
        self._counters = dict.fromkeys(COUNTERS, 0)

    @property
    def num_answers(self) -> int:
        """Answers recorded so far, before a resume included."""
        return self._counters["annotations_total"]

    @property
    def num_labels(self) -> int:
        """Those of them that are labels of the current judge."""
        with self._lock:
            counters = self._counters
            return counters["annotations_total"] - counters["annotations_unparsed"] - counters["annotations_dropped"]

    def counters(self) -> dict[str, int]:
        """All counters, by metric."""
        with self._lock:
            return dict(self._counters)

    def count(self, counter: str, num: int) -> None:
        """Add `num` to a counter."""
        with self._lock:
            self._counters[counter] += num

    def connected(self, said: ServiceDescription) -> None:
        """Note a service's description. AnnotationRefused for a judge whose labels were dropped."""
        with self._lock:
            if said.identity in self._former:
                assert self.judge is not None
                raise AnnotationRefused(
                    f"two judges answer in turn: {_named(said)}, whose labels were dropped, is back in place of"
                    f" {_named(self.judge)}; let one of them answer, and start the run again"
                )
            if self.judge is None and not self.num_labels:
                self.judge = said

    def was_replaced(self, said: ServiceDescription) -> bool:
        """Whether `said` describes a judge whose labels were dropped."""
        with self._lock:
            return said.identity in self._former

    def record(self, said: ServiceDescription, answers: list[Any], earlier: list[Answer]) -> list[Answer]:
        """The labels `earlier` and those among the answers of the judge `said`, which was not replaced; where it takes
        over, by it alone."""
        judge = self.judge
        if judge is None or judge.identity != said.identity:
            self._take_over(said)
            judge, earlier = said, []
        labels = self._questions.record(answers)
        judgements = [judgement_of(answer) for answer in answers]
        judged = [answer for answer in answers if isinstance(answer, JudgedCaption | MatchedCaption)]
        probabilities = [answer.judgement.probability for answer in judged]
        with self._lock:
            counters = self._counters
            counters["annotations_total"] += len(answers)
            counters["annotations_unparsed"] += sum(judgement.status is not Status.OK for judgement in judgements)
            counters["annotations_undecided"] += judge.num_undecided(probabilities)
            counters["annotations_cached"] += sum(judgement.cached for judgement in judgements)
            counters["forward_passes"] += sum(map(passes_of, answers))
        return earlier + labels

    def _take_over(self, said: ServiceDescription) -> None:
        with self._lock:
            former = _named(self.judge) if self.judge else "an unknown one"
            effect = f"{self.num_labels} are dropped, every caption is asked anew, and the reward model starts again"
            judges = f"{_named(said)} in place of {former}"
            LOG.warning("another judge answers: %s. Its labels are not mixed with the former's: %s", judges, effect)
            if self.judge is not None:
                self._former.add(self.judge.identity)
            self.judge = said
        self._questions.forget_answers()
        self.num_judges_replaced += 1
        self.count("annotations_dropped", self.num_labels)

    def state_dict(self) -> dict[str, Any]:
        """The counters and the current judge."""
        with self._lock:
            now = self.judge and dataclasses.replace(self.judge, forward_passes=0, engine_busy_s=0.0)
            return {"counters": dict(self._counters), "judge": dataclasses.asdict(now) if now else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        with self._lock:
            self._counters.update(state["counters"])
            known = state.get("judge")  # older checkpoints lack it; their labels are dropped
            self.judge = ServiceDescription(**known) if known else None


def _named(said: ServiceDescription) -> str:
    return f"{said.model} ({said.engine}, {said.fingerprint[:12]}; rubric {said.rubric_id} {said.rubric_hash[:12]})"
