"""The annotator: asks the annotation service about the captions of the book, highest priority first, within the budget.

    owns              bound                          when full
    requests          max_in_flight                  nothing more is asked
    results           4 x max_in_flight x batch_size the asking threads wait until `take`

Invariant: no failure loses a caption: unanswered captions are pending again, answers are recorded when they are taken,
and an answer that is not OK is neither asked again nor returned as a label. All labels are of one judge.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from configs.annotation_schema import AnnotatorConfig
from configs.backoff import backoff_s
from llm_server.annotation import JudgedCaption, ServiceDescription, Status
from llm_server.annotator.feedback import Answer, JudgeClient, Questions, passes_of, question_of, status_and_cached
from llm_server.annotator.label_origin import JudgeOfLabels
from llm_server.annotator.priorities import AskingBudget
from llm_server.client import AnnotationRefused, ServiceUnavailable, is_loading

LOG = logging.getLogger(__name__)
IDLE_S = 0.1
PROBE_INTERVAL_S = 2.0
FIRST_BACKOFF_S = 0.25
LOADING_INTERVAL_S = 1.0
"""Between attempts while the service loads its model: it will answer soon, and a refused request costs it nothing."""
REMIND_INTERVAL_S = 60.0
CLOSE_BUDGET_S = 1.5
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


class _Batch(NamedTuple):
    """Answers, and the judge that gave them."""

    judge: ServiceDescription
    answers: list[Any]


class Annotator:
    """Asks in its own threads after `start` (`take` returns the answers), or in the caller's with `turn`; not both.

    `connect` makes a client for the service's current address or raises ServiceUnavailable (there is none yet) or
    AnnotationRefused (there will be none). It is called again after every failure, so a service may return elsewhere.
    """

    def __init__(
        self,
        connect: Callable[[], JudgeClient],
        questions: Questions,
        config: AnnotatorConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem: str | None = None
        """Why nothing is asked any more; None as long as requests may succeed."""
        self.is_loading = False
        """Whether the service was loading its model at the last attempt."""
        self.num_judges_replaced = 0
        """How often all labels were dropped because another judge answered, since this process started. A reward model
        must then be reset before it learns from the next labels."""
        self._judge = JudgeOfLabels()
        self._connect, self._questions, self._config, self._clock = connect, questions, config, clock
        self._budget = AskingBudget(config.max_labels, config.max_labels_per_s, clock)
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._is_up: bool | None = None
        self._may_wait = True  # whether `turn` waits for a service that fails
        self._reminded_at = -REMIND_INTERVAL_S
        self._stop = threading.Event()
        self._interrupted = False
        self._lock = threading.Lock()  # of the counters, the state of the service, and the clients
        self._changed = threading.Condition(threading.Lock())  # of the results
        self._results: deque[_Batch] = deque()
        self._num_results = 0
        self._max_results = 4 * config.max_in_flight * config.batch_size
        self._clients: dict[threading.Thread, tuple[JudgeClient, ServiceDescription]] = {}
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
        """The labels among the answers since the last call, now recorded; those of evicted captions are dropped."""
        with self._changed:
            results, self._num_results = list(self._results), 0
            self._results.clear()
            self._changed.notify_all()
        return self._record(results)

    def _ask_on(self, probes: bool) -> None:
        failures, asked_at = 0, self._clock()
        while not self._stop.is_set() and self.problem is None:
            batch = self._next_batch(self._config.batch_size)
            if not batch and not (probes and self._clock() - asked_at >= PROBE_INTERVAL_S):
                self._stop.wait(IDLE_S)
                continue
            answered = self._attempt(batch)
            asked_at = self._clock()
            if answered is None:
                failures = 0 if self.is_loading else failures + 1
                self._stop.wait(self._pause_s(failures))
            else:
                failures = 0
                self._deliver(answered)

    def _deliver(self, batch: "_Batch") -> None:
        num = len(batch.answers)
        with self._changed:
            while self._num_results and self._num_results + num > self._max_results and not self._stop.is_set():
                self._changed.wait()
            if num:
                self._results.append(batch)
                self._num_results += num
                self._changed.notify_all()

    # -- turn by turn -------------------------------------------------------------------------------------------------

    def turn(self, max_labels: int) -> list[Answer]:
        """Ask about the `max_labels` items of highest priority and wait; returns their labels as `take` does.

        A service that fails is waited for, `request_timeout_s` at most and then not again until it has answered, so
        that a slow start or a restart of the service does not change the run; after that a turn costs one attempt.
        """
        judged: list[Answer] = []
        asked = 0
        while self.problem is None and asked < max_labels:
            batch = self._next_batch(min(self._config.batch_size, max_labels - asked))
            if not batch:
                break
            if (answered := self._attempt_and_wait(batch)) is None:
                break
            asked += len(batch)
            num_replaced = self.num_judges_replaced
            labels = self._record([answered])
            judged = judged + labels if self.num_judges_replaced == num_replaced else labels
        return judged

    def interrupt(self) -> None:
        """End the wait of `turn` for a service that is down; safe in a signal handler (takes no lock)."""
        self._interrupted = True

    def _attempt_and_wait(self, batch: Sequence[Any]) -> "_Batch | None":
        deadline, failures = self._clock() + self._config.request_timeout_s, 0
        while (answered := self._attempt(batch)) is None and self._may_wait and self.problem is None:
            failures = 0 if self.is_loading else failures + 1
            retry_at = self._clock() + self._pause_s(failures)
            while self._clock() < retry_at and not self._interrupted and not self._stop.is_set():
                time.sleep(0.02)
            if self._interrupted or self._stop.is_set():
                return None
            self._may_wait = self._clock() < deadline
            batch = self._next_batch(len(batch))  # the failed attempt put it back
        if answered is not None:
            self._may_wait = True
        return answered

    # -- both ---------------------------------------------------------------------------------------------------------

    def _next_batch(self, max_items: int) -> Sequence[Any]:
        """The items of highest priority that the budget allows."""
        reserved = self._budget.reserve(max_items)
        batch = self._questions.next_batch(reserved) if reserved else []
        self._budget.refund(reserved - len(batch))
        return batch

    def _attempt(self, batch: Sequence[Any]) -> "_Batch | None":
        """One request (a liveness probe for an empty batch); None where it failed, with the batch pending again."""
        is_request, client = False, None
        try:
            client, judge = self._client()
            is_request = bool(batch)
            answers: list[Any] = []
            if batch:
                answers = self._questions.ask(client, batch)
            elif client.describe().identity != judge.identity or self._judge.was_replaced(judge):
                raise ServiceUnavailable("another judge answers at the address now: its description is read again")
        except Exception as error:
            self._questions.put_back(batch)
            self._budget.refund(len(batch))
            self._failed(error, is_request)
            return None
        finally:
            if client is not None:  # of several replicas some answers may be invalid although the request succeeded
                with self._lock:
                    self._counters["annotations_rejected"] += client.take_rejected()
        self._succeeded()
        return _Batch(judge, answers)

    def _client(self) -> tuple[JudgeClient, ServiceDescription]:
        """This thread's client and its judge; with one per thread, closing a failed one affects no other request."""
        thread = threading.current_thread()
        with self._lock:
            known = self._clients.get(thread)
        if known is not None:
            return known
        client = self._connect()
        try:
            judge = client.describe()
            self._judge.connected(judge, has_labels=self.num_labels > 0)
            with self._lock:
                self._clients[thread] = client, judge
            if self._stop.is_set():  # `close` may have run before this client was registered
                raise ServiceUnavailable("the annotator is closed")
        except BaseException:
            _close_quietly(client)
            raise
        return client, judge

    def _failed(self, error: Exception, is_request: bool) -> None:
        if self._stop.is_set():
            return
        with self._lock:
            client, _ = self._clients.pop(threading.current_thread(), (None, None))
            was_up, self._is_up = self._is_up, False
            self.is_loading = is_loading(error)
            if isinstance(error, AnnotationRefused):
                if self.problem is None:
                    LOG.error("no caption is judged any more: %s", error)
                self.problem = self.problem or str(error)
            else:
                self._counters["annotation_requests_failed"] += is_request  # a failure to connect counts as waiting
                if was_up or self._clock() - self._reminded_at >= REMIND_INTERVAL_S:
                    self._reminded_at = self._clock()
                    said, is_unexpected = (
                        "the annotation service does not answer",
                        not isinstance(error, ServiceUnavailable),
                    )
                    LOG.warning("%s; training goes on: %s", said, error, exc_info=is_unexpected)
        if client is not None:
            _close_quietly(client)

    def _succeeded(self) -> None:
        with self._lock:
            if not self._is_up:
                LOG.info("the annotation service answers")
            self._is_up, self.is_loading = True, False

    def _record(self, batches: Sequence["_Batch"]) -> list[Answer]:
        """The labels of these batches, all by one judge: where another judge takes over, by that one alone."""
        labels: list[Answer] = []
        for judge, answers in batches:
            if self._judge.was_replaced(judge):  # the request was under way when another judge took over
                self._questions.put_back([question_of(answer) for answer in answers])
                self._budget.refund(len(answers))
                continue
            if self._judge.takes_over(judge, self.num_labels):
                labels.clear()
                self._questions.forget_answers()
                self.num_judges_replaced += 1
                with self._lock:
                    self._counters["annotations_dropped"] += self._num_labels
            labels += self._record_answers(answers)
        return labels

    def _record_answers(self, answers: list[Any]) -> list[Answer]:
        labels = self._questions.record(answers)
        self._budget.spend(len(answers))
        statuses = [status_and_cached(answer) for answer in answers]
        judged = [answer.judgement for answer in answers if isinstance(answer, JudgedCaption)]
        judge, counters = self.judge, self._counters
        with self._lock:
            counters["annotations_total"] += len(answers)
            counters["annotations_unparsed"] += sum(status is not Status.OK for status, _ in statuses)
            counters["annotations_undecided"] += sum(map(judge.is_undecided, judged)) if judge is not None else 0
            counters["annotations_cached"] += sum(cached for _, cached in statuses)
            counters["forward_passes"] += sum(map(passes_of, answers))
        return labels

    def _pause_s(self, failures: int) -> float:
        """Doubles from a quarter of a second up to `max_backoff_s`, but is short while the service loads (0 failures);
        the random factor spreads clients out."""
        pause_s = backoff_s(failures, FIRST_BACKOFF_S, self._config.max_backoff_s) or LOADING_INTERVAL_S
        return pause_s * random.uniform(0.5, 1.0)

    @property
    def num_answers(self) -> int:
        """Answers taken so far, before a resume included."""
        with self._lock:
            return self._counters["annotations_total"]

    @property
    def num_labels(self) -> int:
        """Those of them that are labels of the current judge."""
        with self._lock:
            return self._num_labels

    @property
    def _num_labels(self) -> int:
        counters = self._counters
        return counters["annotations_total"] - counters["annotations_unparsed"] - counters["annotations_dropped"]

    @property
    def judge(self) -> ServiceDescription | None:
        """The judge of the labels, known before the first of them; None until a service has answered."""
        return self._judge.now

    def retain(self, ids: Set[int]) -> None:
        """Forget captions other than these."""
        self._questions.retain(ids)

    def metrics(self) -> dict[str, float | None]:
        """Catalogue metrics; `annotator_up` is whether the last request was answered, None before the first."""
        pending = self._questions.pending()
        with self._lock:
            is_up = None if self._is_up is None else int(self._is_up and self.problem is None)
            metrics: dict[str, float | None] = {
                **self._counters,
                "annotator_up": is_up,
                "annotation_results_waiting": self._num_results,
            }
        return metrics if pending is None else metrics | {"annotations_pending": pending}

    def state_dict(self) -> dict[str, Any]:
        """The counters, and what the book does not keep. Answers that were not taken yet count as not asked."""
        questions = self._questions.state_dict()
        with self._lock:
            return {"counters": dict(self._counters), "questions": questions, "judge": self._judge.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        with self._lock:
            self._counters.update(state["counters"])
        self._budget.restore(self._counters["annotations_total"])
        self._questions.load_state_dict(state["questions"])
        self._judge.load_state_dict(state.get("judge") or {})  # older checkpoints lack it; their labels are dropped

    def close(self) -> None:
        """Stop asking, within two seconds even where a request hangs (its daemon thread stays, its answer is lost)."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        with self._lock:
            clients, self._clients = [client for client, _ in self._clients.values()], {}
        for client in clients:
            _close_quietly(client)
        deadline = time.monotonic() + CLOSE_BUDGET_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _close_quietly(client: JudgeClient) -> None:
    try:
        client.close()
    except Exception:
        LOG.debug("closing an annotation client failed", exc_info=True)
