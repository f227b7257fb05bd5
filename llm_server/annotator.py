"""The annotator: asks the annotation service about what the caption book holds, most urgent first, within the budget.

    owns              bound                          when full
    requests          max_in_flight                  nothing more is asked
    results           4 x max_in_flight x batch_size the asking threads wait until `take`

Invariant: a caption is lost by no failure: what was not answered is pending again, what was answered is recorded when it
is taken, and an answer that is not OK is never asked about again and never handed on as a label.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from configs.service_schema import AnnotatorConfig
from llm_server.annotation import JudgedCaption, ServiceDescription, Status
from llm_server.asking_budget import AskingBudget
from llm_server.client import AnnotationRefused, ServiceUnavailable
from llm_server.questions import AnnotationClient, Answer, Questions, passes_of, status_of

LOG = logging.getLogger(__name__)
IDLE_S = 0.1
PROBE_INTERVAL_S = 2.0
FIRST_BACKOFF_S = 0.25
REMIND_INTERVAL_S = 60.0
CLOSE_BUDGET_S = 1.5
COUNTERS = (
    "annotations_total",
    "annotations_cached",
    "annotations_unparsed",
    "annotations_undecided",
    "annotations_rejected",
    "forward_passes",
    "annotation_requests_failed",
)


class Annotator:
    """Asks in its own threads after `start` (answers wait in `take`), or in the caller's with `turn`; not both.

    `connect` makes a client for the service's present address or raises ServiceUnavailable (there is none yet) or
    AnnotationRefused (there will be none). Every failure asks it for a new one, so a service may come back elsewhere.
    """

    def __init__(
        self,
        connect: Callable[[], AnnotationClient],
        questions: Questions,
        config: AnnotatorConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem: str | None = None
        """Why nothing is asked any more; None as long as asking makes sense."""
        self.judge: ServiceDescription | None = None
        """What the service last said of itself, always known before its first judgement; None until it has answered."""
        self._connect, self._questions, self._config, self._clock = connect, questions, config, clock
        self._budget = AskingBudget(config.max_labels, config.max_labels_per_s, clock)
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._is_up: bool | None = None
        self._is_patient = True
        self._reminded_at = -REMIND_INTERVAL_S
        self._stop = threading.Event()
        self._interrupted = False
        self._lock = threading.Lock()  # of the counters, the state of the service, and the clients
        self._changed = threading.Condition(threading.Lock())  # of the results
        self._results: deque[list[Any]] = deque()
        self._num_results = 0
        self._max_results = 4 * config.max_in_flight * config.batch_size
        self._clients: dict[threading.Thread, AnnotationClient] = {}
        self._threads: list[threading.Thread] = []

    # -- asynchronous -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin asking, `max_in_flight` requests at a time."""
        for index in range(self._config.max_in_flight):
            thread = threading.Thread(target=self._ask_on, args=(index == 0,), name=f"annotator-{index}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self, timeout_s: float) -> None:
        """Return as soon as there is an answer to take, after `timeout_s`, or on `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._results or self._stop.is_set(), timeout_s)

    def take(self) -> list[Answer]:
        """What is to be learnt from the answers that came since the last call, now recorded; nothing of those that are no labels or
        whose caption has been evicted."""
        with self._changed:
            results = [item for batch in self._results for item in batch]
            self._results.clear()
            self._num_results = 0
            self._changed.notify_all()
        return self._record(results)

    def _ask_on(self, probes: bool) -> None:
        failures, asked_at = 0, self._clock()
        while not self._stop.is_set() and self.problem is None:
            batch = self._next_batch(self._config.batch_size)
            if not batch and not (probes and self._clock() - asked_at >= PROBE_INTERVAL_S):
                self._stop.wait(IDLE_S)
                continue
            answers = self._attempt(batch)
            asked_at = self._clock()
            if answers is None:
                self._stop.wait(self._backoff_s(failures))
                failures += 1
            else:
                failures = 0
                self._deliver(answers)

    def _deliver(self, answers: list[Answer]) -> None:
        with self._changed:
            while self._num_results and self._num_results + len(answers) > self._max_results and not self._stop.is_set():
                self._changed.wait()
            if answers:
                self._results.append(answers)
                self._num_results += len(answers)
                self._changed.notify_all()

    # -- turn by turn -------------------------------------------------------------------------------------------------

    def turn(self, max_labels: int) -> list[Answer]:
        """Ask about the `max_labels` most urgent items here and now and return their labels as `take` does.

        A service that fails is waited for, `request_timeout_s` at most and then not again until it has answered, so that
        a run whose service starts slowly or restarts is the same run; after that a turn costs one attempt.
        """
        judged: list[Answer] = []
        asked = 0
        while self.problem is None and asked < max_labels:
            batch = self._next_batch(min(self._config.batch_size, max_labels - asked))
            if not batch:
                break
            answers = self._attempt_patiently(batch)
            if answers is None:
                break
            asked += len(batch)
            judged += self._record(answers)
        return judged

    def interrupt(self) -> None:
        """End `turn`'s waiting for a service that is down; safe in a signal handler (takes no lock)."""
        self._interrupted = True

    def _attempt_patiently(self, batch: Sequence[Any]) -> list[Answer] | None:
        deadline, failures = self._clock() + self._config.request_timeout_s, 0
        while (answers := self._attempt(batch)) is None and self._is_patient and self.problem is None:
            retry_at = self._clock() + self._backoff_s(failures)
            while self._clock() < retry_at and not self._interrupted and not self._stop.is_set():
                time.sleep(0.02)
            if self._interrupted or self._stop.is_set():
                return None
            failures += 1
            self._is_patient = self._clock() < deadline
            batch = self._next_batch(len(batch))  # the failed attempt put it back
        if answers is not None:
            self._is_patient = True
        return answers

    # -- both ---------------------------------------------------------------------------------------------------------

    def _next_batch(self, max_items: int) -> Sequence[Any]:
        """The most urgent items that the budget allows."""
        reserved = self._budget.reserve(max_items)
        batch = self._questions.next_batch(reserved) if reserved else []
        self._budget.refund(reserved - len(batch))
        return batch

    def _attempt(self, batch: Sequence[Any]) -> list[Answer] | None:
        """One request (a mere sign of life for an empty batch); None where it failed, with the batch pending again."""
        is_request, client = False, None
        try:
            client = self._client()
            is_request = bool(batch)
            answers: list[Any] = []
            if batch:
                answers = self._questions.ask(client, batch)
            else:
                client.describe()
        except Exception as error:
            self._questions.put_back(batch)
            self._budget.refund(len(batch))
            self._failed(error, is_request)
            return None
        finally:
            if client is not None:  # replicas reject answers of one and take those of another
                with self._lock:
                    self._counters["annotations_rejected"] += client.take_rejected()
        self._succeeded()
        return answers

    def _client(self) -> AnnotationClient:
        """This thread's client. One each, so that dropping a broken one disturbs no other request."""
        thread = threading.current_thread()
        with self._lock:
            client = self._clients.get(thread)
        if client is None:
            client = self._connect()
            with self._lock:
                self._clients[thread] = client
            self.judge = client.describe()  # another service may be another judge
            if self._stop.is_set():  # `close` may have looked before this client was there
                client.close()
                raise ServiceUnavailable("the annotator is closed")
        return client

    def _failed(self, error: Exception, is_request: bool) -> None:
        if self._stop.is_set():
            return
        with self._lock:
            client = self._clients.pop(threading.current_thread(), None)
            was_up, self._is_up = self._is_up, False
            if isinstance(error, AnnotationRefused):
                if self.problem is None:
                    LOG.error("no caption is judged any more: %s", error)
                self.problem = self.problem or str(error)
            else:
                self._counters["annotation_requests_failed"] += is_request  # failing to connect is waiting, not failing
                # The first failure, and then a reminder now and again.
                if was_up or self._clock() - self._reminded_at >= REMIND_INTERVAL_S:
                    self._reminded_at = self._clock()
                    unexpected = not isinstance(error, ServiceUnavailable)
                    LOG.warning("the annotation service does not answer; training goes on: %s", error, exc_info=unexpected)
        if client is not None:
            _close_quietly(client)

    def _succeeded(self) -> None:
        with self._lock:
            if not self._is_up:
                LOG.info("the annotation service answers")
            self._is_up = True

    def _record(self, answers: list[Any]) -> list[Answer]:
        labels = self._questions.record(answers)
        self._budget.spend(len(answers))
        said = [status_of(answer) for answer in answers]
        with self._lock:
            self._counters["annotations_total"] += len(said)
            self._counters["annotations_unparsed"] += sum(status is not Status.OK for status, _ in said)
            self._counters["annotations_undecided"] += sum(self._is_undecided(answer) for answer in answers)
            self._counters["annotations_cached"] += sum(cached for _, cached in said)
            self._counters["forward_passes"] += sum(passes_of(answer) for answer in answers)
        return labels

    def _is_undecided(self, answer: Any) -> bool:
        return self.judge is not None and isinstance(answer, JudgedCaption) and self.judge.is_undecided(answer.judgement)

    def _backoff_s(self, failures: int) -> float:
        """Doubles from a quarter of a second up to `max_backoff_s`, of which a random half is taken off: clients spread out."""
        return min(FIRST_BACKOFF_S * 2.0 ** min(failures, 16), self._config.max_backoff_s) * random.uniform(0.5, 1.0)

    @property
    def num_answers(self) -> int:
        """Answers taken so far, earlier lives of the run included."""
        with self._lock:
            return self._counters["annotations_total"]

    @property
    def num_labels(self) -> int:
        """Those of them that are labels."""
        with self._lock:
            return self._counters["annotations_total"] - self._counters["annotations_unparsed"]

    def retain(self, ids: Set[int]) -> None:
        """Forget what was remembered of captions other than these."""
        self._questions.retain(ids)

    def metrics(self) -> dict[str, float | None]:
        """Catalogue figures; `annotator_up` is whether the last request was answered, None before the first."""
        pending = self._questions.pending()
        with self._lock:
            is_up = None if self._is_up is None else int(self._is_up and self.problem is None)
            figures: dict[str, float | None] = {**self._counters, "annotator_up": is_up, "annotation_results_waiting": self._num_results}
            return figures if pending is None else {**figures, "annotations_pending": pending}

    def state_dict(self) -> dict[str, Any]:
        """The counters, and what the book does not keep. What was asked and not yet taken counts as not asked."""
        questions = self._questions.state_dict()
        with self._lock:
            return {"counters": dict(self._counters), "questions": questions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        with self._lock:
            self._counters.update(state["counters"])
        self._budget.restore(self._counters["annotations_total"])
        self._questions.load_state_dict(state["questions"])

    def close(self) -> None:
        """Stop asking, within two seconds even where a request hangs (its daemon thread is left behind, its answer dropped)."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            _close_quietly(client)
        deadline = time.monotonic() + CLOSE_BUDGET_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _close_quietly(client: AnnotationClient) -> None:
    try:
        client.close()
    except Exception:
        LOG.debug("closing an annotation client failed", exc_info=True)
