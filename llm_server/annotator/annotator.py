"""The annotator: asks the annotation service about the captions of the book, highest priority first, within the budget.

    owns              bound                          when full
    requests          max_in_flight                  nothing more is asked
    results           4 x max_in_flight x batch_size the asking threads wait until `take`

Invariant: no failure loses a caption: unanswered captions are pending again, answers are recorded when they are taken,
and an answer that is not OK is neither asked again nor returned as a label. All labels are of one judge. What is
reserved of the budget is either recorded or put back, and answers never exceed `annotator.max_labels`. After a resume
it counts from the checkpoint: later answers come from the judgement store, which costs nothing.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, TypeAlias

from configs.annotation_schema import AnnotatorConfig
from configs.backoff import backoff_s
from llm_server.annotation import ServiceDescription
from llm_server.annotator.feedback import Answer, CaptionQuestions, JudgeClient, question_of
from llm_server.annotator.labels import Labels
from llm_server.client import AnnotationRefused, ServiceUnavailable, is_loading
from llm_server.token_bucket import TokenBucket

LOG = logging.getLogger(__name__)
IDLE_S = 0.1
PROBE_INTERVAL_S = 2.0
FIRST_BACKOFF_S = 0.25
LOADING_INTERVAL_S = 1.0
"""Between attempts while the service loads its model: it will answer soon, and a refused request costs it nothing."""
REMIND_INTERVAL_S = 60.0
CLOSE_BUDGET_S = 1.5
Batch: TypeAlias = tuple[ServiceDescription, list[Any]]
"""Answers, and the judge that gave them."""


class Annotator:
    """Asks in its own threads after `start` (`take` returns the answers), or in the caller's with `turn`; not both.

    `connect` makes a client for the service's current address or raises ServiceUnavailable (there is none yet) or
    AnnotationRefused (there will be none). It is called again after every failure, so a service may return elsewhere.
    """

    def __init__(
        self, connect: Callable[[], JudgeClient], questions: CaptionQuestions, config: AnnotatorConfig
    ) -> None:
        self.problem: str | None = None
        """Why nothing is asked any more; None as long as requests may succeed."""
        self.is_loading = False
        """Whether the service was loading its model at the last attempt."""
        self._labels = Labels(questions)
        self._connect, self._questions, self._config = connect, questions, config
        self._rate_limit = TokenBucket(config.max_labels_per_s, time.monotonic)
        self._num_reserved = 0  # of the budget: items that are neither recorded nor put back yet
        self._is_up: bool | None = None
        self._may_wait = True  # whether `turn` waits for a service that fails
        self._reminded_at = -REMIND_INTERVAL_S
        self._stop = threading.Event()
        self._interrupted = False
        self._changed = threading.Condition()  # of the results; its lock guards everything else too
        self._results: list[Batch] = []
        self._clients: dict[threading.Thread, tuple[JudgeClient, ServiceDescription]] = {}
        self._threads: list[threading.Thread] = []

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
            results, self._results = self._results, []
            self._changed.notify_all()
        labels: list[Answer] = []
        for batch in results:
            labels = self._record(batch, labels)
        return labels

    def _ask_on(self, probes: bool) -> None:
        failures, asked_at = 0, time.monotonic()
        while not self._stop.is_set() and self.problem is None:
            items = self._next_batch(self._config.batch_size)
            if not items and not (probes and time.monotonic() - asked_at >= PROBE_INTERVAL_S):
                self._stop.wait(IDLE_S)
                continue
            answered = self._attempt(items)
            asked_at = time.monotonic()
            if answered is None:
                failures = 0 if self.is_loading else failures + 1
                self._stop.wait(self._pause_s(failures))
            else:
                failures = 0
                self._deliver(answered)

    def _deliver(self, batch: Batch) -> None:
        most = 4 * self._config.max_in_flight * self._config.batch_size - len(batch[1])
        with self._changed:
            self._changed.wait_for(lambda: self._num_results() <= most or self._stop.is_set())
            if batch[1]:
                self._results.append(batch)
                self._changed.notify_all()

    def _num_results(self) -> int:
        return sum(len(answers) for _, answers in self._results)

    def turn(self, max_labels: int) -> list[Answer]:
        """Ask about the `max_labels` items of highest priority and wait; returns their labels as `take` does.

        A service that fails is waited for, `request_timeout_s` at most and then not again until it has answered, so
        that a slow start or a restart of the service does not change the run; after that a turn costs one attempt.
        """
        labels: list[Answer] = []
        asked, failures, timeout_s = 0, 0, self._config.request_timeout_s
        give_up_at = time.monotonic() + timeout_s
        while self.problem is None and (items := self._next_batch(min(self._config.batch_size, max_labels - asked))):
            if (answered := self._attempt(items)) is not None:
                labels = self._record(answered, labels)
                asked, failures, give_up_at = asked + len(items), 0, time.monotonic() + timeout_s
                continue
            if not self._may_wait or self.problem is not None:
                break
            failures = 0 if self.is_loading else failures + 1
            retry_at = time.monotonic() + self._pause_s(failures)
            while time.monotonic() < retry_at and not self._interrupted and not self._stop.is_set():
                time.sleep(0.02)
            if self._interrupted or self._stop.is_set():
                break
            self._may_wait = time.monotonic() < give_up_at
        return labels

    def interrupt(self) -> None:
        """End the wait of `turn` for a service that is down; safe in a signal handler (takes no lock)."""
        self._interrupted = True

    def _next_batch(self, max_items: int) -> Sequence[Any]:
        """The items of highest priority that the budget allows."""
        with self._changed:
            if self._config.max_labels:
                max_items = max(0, min(max_items, self._config.max_labels - self.num_answers - self._num_reserved))
            reserved = self._rate_limit.take(max_items)
            self._num_reserved += reserved
        items = self._questions.next_batch(reserved) if reserved else []
        self._refund(reserved - len(items))
        return items

    def _refund(self, num: int) -> None:
        with self._changed:
            self._num_reserved -= num
            self._rate_limit.put_back(num)

    def _attempt(self, items: Sequence[Any]) -> Batch | None:
        """One request (a liveness probe without items); None where it failed, with the items pending again."""
        client = None
        try:
            client, judge = self._client()
            answers = self._questions.ask(client, items) if items else []
            if not items and (client.describe().identity != judge.identity or self._labels.was_replaced(judge)):
                raise ServiceUnavailable("another judge answers at the address now: its description is read again")
        except Exception as error:
            self._questions.put_back(items)
            self._refund(len(items))
            self._failed(error, is_request=client is not None and bool(items))
            return None
        finally:
            if client is not None:  # of several replicas some answers may be invalid although the request succeeded
                self._labels.count("annotations_rejected", client.take_rejected())
        with self._changed:
            if not self._is_up:
                LOG.info("the annotation service answers")
            self._is_up, self.is_loading, self._may_wait = True, False, True
        return judge, answers

    def _client(self) -> tuple[JudgeClient, ServiceDescription]:
        """This thread's client and its judge; with one per thread, closing a failed one affects no other request."""
        thread = threading.current_thread()
        if known := self._clients.get(thread):
            return known
        client = self._connect()
        try:
            judge = client.describe()
            self._labels.connected(judge)
            with self._changed:
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
        with self._changed:
            client, _ = self._clients.pop(threading.current_thread(), (None, None))
            was_up, self._is_up = self._is_up, False
            self.is_loading = is_loading(error)
            if isinstance(error, AnnotationRefused):
                if self.problem is None:
                    LOG.error("no caption is judged any more: %s", error)
                self.problem = self.problem or str(error)
            else:
                self._labels.count("annotation_requests_failed", is_request)  # a failure to connect counts as waiting
                if was_up or time.monotonic() - self._reminded_at >= REMIND_INTERVAL_S:
                    self._reminded_at = time.monotonic()
                    said = "the annotation service does not answer; training goes on"
                    LOG.warning("%s: %s", said, error, exc_info=not isinstance(error, ServiceUnavailable))
        if client is not None:
            _close_quietly(client)

    def _record(self, batch: Batch, earlier: list[Answer]) -> list[Answer]:
        """See `Labels.record`."""
        judge, answers = batch
        if self._labels.was_replaced(judge):  # the request was under way when another judge took over
            self._questions.put_back([question_of(answer) for answer in answers])
            self._refund(len(answers))
            return earlier
        labels = self._labels.record(judge, answers, earlier)
        with self._changed:
            self._num_reserved -= len(answers)
        return labels

    def _pause_s(self, failures: int) -> float:
        """Doubles from a quarter of a second up to `max_backoff_s`, but is short while the service loads (0 failures);
        the random factor spreads clients out."""
        pause_s = backoff_s(failures, FIRST_BACKOFF_S, self._config.max_backoff_s) or LOADING_INTERVAL_S
        return pause_s * random.uniform(0.5, 1.0)

    @property
    def num_answers(self) -> int:
        """Answers taken so far, before a resume included."""
        return self._labels.num_answers

    @property
    def num_labels(self) -> int:
        """Those of them that are labels of the current judge."""
        return self._labels.num_labels

    @property
    def num_judges_replaced(self) -> int:
        """How often all labels were dropped because another judge answered, since this process started. A reward model
        must then be reset before it learns from the next labels."""
        return self._labels.num_judges_replaced

    @property
    def judge(self) -> ServiceDescription | None:
        """The judge of the labels, known before the first of them; None until a service has answered."""
        return self._labels.judge

    def retain(self, ids: Set[int]) -> None:
        """Forget captions other than these."""
        self._questions.retain(ids)

    def metrics(self) -> dict[str, float | None]:
        """Catalogue metrics; `annotator_up` is whether the last request was answered, None before the first."""
        pending = self._questions.pending()
        with self._changed:
            is_up = None if self._is_up is None else int(self._is_up and self.problem is None)
            waiting = self._num_results()
        not_in_book = {} if pending is None else {"annotations_pending": pending}
        return {**self._labels.counters(), "annotator_up": is_up, "annotation_results_waiting": waiting, **not_in_book}

    def state_dict(self) -> dict[str, Any]:
        """The counters, and what the book does not keep. Answers that were not taken yet count as not asked."""
        return {**self._labels.state_dict(), "questions": self._questions.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._labels.load_state_dict(state)
        self._questions.load_state_dict(state["questions"])

    def close(self) -> None:
        """Stop asking, within two seconds even where a request hangs (its daemon thread stays, its answer is lost)."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
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
