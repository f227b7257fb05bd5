"""The pipeline that runs annotation and the training of the reward model beside the learner.

    consumes              waits for                                  is unblocked by
    caption reports       nothing                                    -
    answers               `Annotator.wait` (at most an interval)     an answer, or `close`
    gradient steps        their share of the time                    -
    reward tables         nothing: latest only                       -

Invariant: the learner never waits for any of this; if something fails here, it keeps the last table.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.annotation_schema import RewardModelConfig
from configs.reward_schema import MAIN_TERM
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_book import CaptionBook
from llm_server.service.child import ServiceProcess
from llm_server.service.judge import Judge
from reward_models.interface import Evidence
from reward_models.table import RewardTable
from reward_models.training import RewardTrainer

LOG = logging.getLogger(__name__)
MAX_FAILURES_IN_A_ROW = 10
PUBLISHING_SHARE = 0.1
SLICE = 256
"""Captions scored at a time; a network needs a fraction of a second for them even on a busy core."""
CLOSE_BUDGET_S = 2.0


class FairLock:
    """Not reentrant. With a plain lock, a thread that releases it and acquires it again at once can starve others."""

    def __init__(self) -> None:
        self._door = threading.Lock()  # held while waiting for the lock, so that the next thread waits here
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._door:
            self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardedCaption:
    """One line of the end-of-run summary (annotation -> user)."""

    text: str
    reward: float  # R in the newest table
    probability: float | None  # the judge's; None if it was not asked
    count: int  # occurrences in the run
    term: str = MAIN_TERM


class AnnotationPipeline:
    """Caption book, annotator and trainer of a term of the reward; every method may be called from any thread.

    Models that need no judgements get `annotator=None`: then nothing is asked and no service is started. A `service` is
    started, supervised and stopped by the pipeline, which may share it with others; a `judge` in this process is closed
    by it. Use either `start` (asynchronous) or `turn` (one process), not both.
    """

    def __init__(
        self,
        book: CaptionBook,
        trainer: RewardTrainer,
        *,
        annotator: Annotator | None = None,
        service: ServiceProcess | None = None,
        judge: Judge | None = None,
        config: RewardModelConfig,
    ) -> None:
        self._book, self._trainer, self._annotator = book, trainer, annotator
        self._service, self._judge = service, judge
        self._publish_interval_s, self._training_share = config.publish_interval_s, config.training_share
        self._lock = FairLock()  # of the trainer
        self._unlearnt: list[Evidence] = []
        self._num_answers = self._num_judges_replaced = 0
        if annotator is not None:
            trainer.on_retain = annotator.retain
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        if service is not None:
            service.ensure_running()

    @property
    def problem(self) -> str | None:
        """Why captions are no longer judged; None while annotation works or may recover by itself."""
        return (self._annotator.problem if self._annotator else None) or self._failure

    @property
    def is_loading(self) -> bool:
        """Whether the judge is still loading its model."""
        return self._annotator is not None and self._annotator.is_loading

    def report(
        self, texts: Mapping[int, str], counts: Mapping[int, int], worker_id: str, sequence_number: int, env_steps: int
    ) -> tuple[str, int]:
        """Add a worker's caption report; see `CaptionBook.take_report`."""
        return self._book.take_report(texts, counts, worker_id, sequence_number, env_steps)

    def turn(self, max_labels: int) -> RewardTable:
        """Ask for at most `max_labels` answers, learn, train and publish in this thread; returns the newest table."""
        answers = self._annotator.turn(max_labels) if self._annotator else []
        with self._lock:
            if self._annotator:
                self._learn(self._annotator, answers)
            self._trainer.train()
            self._trainer.publish()
            return self._trainer.table

    def _learn(self, annotator: Annotator, answers: Sequence[Evidence]) -> None:
        """Learn the answers, and those left over from a failure."""
        is_replaced = annotator.num_judges_replaced != self._num_judges_replaced
        self._unlearnt = [*answers] if is_replaced else [*self._unlearnt, *answers]  # none of a former judge
        if is_replaced:
            self._trainer.begin_anew()
            self._num_judges_replaced = annotator.num_judges_replaced
        if annotator.judge:
            self._trainer.calibrate(annotator.judge.pays_above)
        # Answers are counted, not evidence: an answer may not be a label, or not make a pair.
        if annotator.num_answers > self._num_answers and self._service:
            self._service.served()
        self._num_answers = annotator.num_answers
        self._trainer.learn(self._unlearnt)
        self._trainer.note_labels(annotator.num_labels)
        self._unlearnt = []

    def start(self) -> None:
        """Start to ask, learn and publish in the background."""
        if self._annotator:
            self._annotator.start()
        self._thread = threading.Thread(target=self._run, name="reward-training", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        failures, publish_at, train_at = 0, time.monotonic(), time.monotonic()
        while not self._stop.is_set():
            try:
                due = publish_at if self._trainer.is_settled else min(publish_at, train_at)
                self._learn_what_came(min(max(0.0, due - time.monotonic()), self._publish_interval_s))
                if time.monotonic() >= train_at and not self._trainer.is_settled:
                    train_at = self._next_time(self._train, self._training_share, 0.0)
                if time.monotonic() >= publish_at:
                    publish_at = self._next_time(self._publish, PUBLISHING_SHARE, self._publish_interval_s)
                failures = 0
            except Exception as error:
                failures += 1
                LOG.exception("reward training failed (%d in a row); the run continues with the last table", failures)
                if failures == MAX_FAILURES_IN_A_ROW:
                    self._failure = f"reward training failed {failures} times in a row, most recently with {error!r}"
                    LOG.error("%s: the reward table does not change until the run is restarted", self._failure)
                    return
                self._stop.wait(self._publish_interval_s)

    def _next_time(self, work: Callable[[], object], share: float, interval_s: float) -> float:
        """Do `work` now; returns when it is due again, so that it takes at most `share` of the time from the run."""
        started = time.monotonic()
        work()
        return started + max(interval_s, (time.monotonic() - started) / share)

    def _train(self) -> None:
        with self._lock:
            self._trainer.train()

    def _publish(self) -> None:
        """Score captions in slices, and between them release the lock for checkpoints and learn new answers. Only this
        thread trains, so all slices have the same weights; normalisation and the table itself are computed under one
        lock."""
        captions = self._book.captions() if self._trainer.needs_preparation else []
        for start in range(0, len(captions), SLICE):
            if self._stop.is_set():
                return
            with self._lock:
                self._trainer.prepare(captions[start : start + SLICE])
            self._learn_what_came(0.0)
        with self._lock:
            self._trainer.publish()

    def _learn_what_came(self, timeout_s: float) -> None:
        if self._service:
            self._service.ensure_running()
        if self._annotator is None:
            self._stop.wait(timeout_s)
            return
        self._annotator.wait(timeout_s)
        with self._lock:  # no checkpoint may be saved between taking and learning
            self._learn(self._annotator, self._annotator.take())

    def latest_table(self) -> RewardTable:
        """The newest table; never blocks."""
        return self._trainer.table

    def metrics(self) -> dict[str, float | None]:
        """Metrics of the book, annotation and the reward model by name."""
        unasked = {"annotations_pending": None, "annotation_age_s": None}
        metrics: dict[str, float | None] = {**self._book.metrics(), **self._trainer.metrics()}
        metrics |= self._annotator.metrics() if self._annotator else unasked
        if self._service:
            metrics["service_restarts"] = self._service.restarts
        if self._failure:
            metrics["annotator_up"] = 0
        return metrics

    def top_rewarded(self, n: int, min_count: int) -> list[RewardedCaption]:
        """The `n` captions of highest R > 0 that occurred at least `min_count` times, ordered by R, count, id."""
        table = self.latest_table()
        counts, probabilities = self._book.look_up(table.ids)
        rows = np.flatnonzero((table.rewards > 0) & (counts >= max(min_count, 1)))
        rows = rows[np.lexsort((table.ids[rows], -counts[rows], -table.rewards[rows]))][:n]
        texts = self._book.captions_of(table.ids[rows].tolist())
        return [
            RewardedCaption(
                text=texts[number].text if (number := int(table.ids[row])) in texts else "",
                reward=float(table.rewards[row]),
                probability=None if np.isnan(probabilities[row]) else float(probabilities[row]),
                count=int(counts[row]),
            )
            for row in rows
        ]

    def interrupt(self) -> None:
        """End a `turn`'s wait for the service; called from a signal handler."""
        if self._annotator:
            self._annotator.interrupt()

    def state_dict(self) -> dict[str, Any]:
        """A consistent state of book, counters, model and table; also updates captions.sqlite."""
        self._book.write_archive()
        with self._lock:
            return {
                "book": self._book.state_dict(),
                "annotator": self._annotator.state_dict() if self._annotator else {},
                "trainer": self._trainer.state_dict(),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, before `start`. An empty state, of a run without annotation, changes nothing."""
        if not state:
            return
        self._book.load_state_dict(state["book"])
        if self._annotator:
            self._annotator.load_state_dict(state["annotator"])
            self._num_answers = self._annotator.num_answers
        with self._lock:
            self._trainer.load_state_dict(state["trainer"])

    def close(self) -> None:
        """Stop asking and training, stop the service, and write the archive."""
        self._stop.set()
        if self._annotator:
            self._annotator.close()
        if self._thread:
            self._thread.join(CLOSE_BUDGET_S)
        if self._service:
            self._service.close()
        if self._judge:
            self._judge.close()
        self._book.close()
