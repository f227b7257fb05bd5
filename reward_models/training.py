"""From judgements to reward tables: the trainer of a reward model, and the pipeline that runs annotation and training beside the learner.

    consumes              waits for                        is unblocked by
    caption reports       nothing                          -
    judgements            `Annotator.take` (an interval)   an answer, or `close`
    reward tables         nothing: latest only             -

Invariant: the learner never waits for any of it: whatever fails here leaves it the last table.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.service_schema import RewardModelConfig
from llm_server.annotation import JudgedCaption
from llm_server.annotator import Annotator
from llm_server.caption_book import CaptionBook
from llm_server.judge import Judge
from llm_server.service_process import ServiceProcess
from reward_models.baselines import ConstantModel
from reward_models.interface import RewardModel
from reward_models.retrieval import RetrievalModel
from reward_models.table import RewardTable

LOG = logging.getLogger(__name__)
MAX_FAILURES_IN_A_ROW = 10
PUBLISHING_SHARE = 0.1
CLOSE_BUDGET_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardedCaption:
    """One line of the end-of-run summary (annotation -> user)."""

    text: str
    reward: float
    """R in the newest table."""
    probability: float | None
    """The judge's; None where it was not asked."""
    count: int
    """Occurrences in the run."""


def build_reward_model(config: RewardModelConfig) -> RewardModel:
    """The reward model that `config` names; raises ValueError for an unknown name or a wrong setting."""
    if config.name == "retrieval":
        return RetrievalModel(config)
    if config.name == "counts":
        return ConstantModel.counts()
    if config.name == "none":
        return ConstantModel.none()
    raise ValueError(f"reward_model.name is `retrieval`, `counts` or `none`, got {config.name!r}")


class RewardTrainer:
    """Teaches one reward model and makes its tables; not thread-safe (its owner locks)."""

    def __init__(self, model: RewardModel, book: CaptionBook, run_epoch: int) -> None:
        self.table = RewardTable.empty(run_epoch)
        """The newest table; versions are (run_epoch, n) and only go up."""
        self._model, self._book = model, book
        self._figures: Mapping[str, float] = {}
        self._seen: tuple[int, int] | None = None  # the book's revision and evictions at the last evaluation
        self._has_learnt = False
        self._threshold: float | None = None

    def calibrate(self, threshold: float) -> None:
        """Hand the judge's threshold to the model; called as often as one likes."""
        if threshold != self._threshold:
            self._threshold = threshold
            self._model.calibrate(threshold)
            self._has_learnt = True

    def learn(self, judged: Sequence[JudgedCaption]) -> None:
        """Hand new judgements to the model."""
        if judged:
            self._figures = {**self._figures, **self._model.learn(judged)}
            self._has_learnt = True

    def publish(self) -> RewardTable | None:
        """A new table over all captions of the book, or None where it would equal the last."""
        now = self._book.revision, self._book.num_evicted
        if now == self._seen and not self._has_learnt:
            return None
        captions = self._book.captions()
        ids = np.array([caption.id for caption in captions], np.uint64)
        if self._seen is not None and now[1] != self._seen[1]:
            self._model.retain({caption.id for caption in captions})
        run_epoch, number = self.table.reward_version
        table = RewardTable.build(ids, self._model.score(captions), (run_epoch, number + 1))
        self._seen, self._has_learnt = now, False
        if np.array_equal(table.ids, self.table.ids) and np.array_equal(table.rewards, self.table.rewards):
            return None
        self.table = table
        return table

    def metrics(self) -> dict[str, float | None]:
        """Catalogue figures; the accuracy is None for models that have none to report."""
        return {"reward_version": self.table.reward_version[1], "reward_model_accuracy": self._figures.get("accuracy")}

    def state_dict(self) -> dict[str, Any]:
        """The model and the newest table."""
        return {"model": self._model.state_dict(), "ids": self.table.ids, "rewards": self.table.rewards, "figures": dict(self._figures)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`: the same table at once, as the first version of this run epoch."""
        self._model.load_state_dict(state["model"])
        self._figures = dict(state["figures"])
        self.table = saved_table(state, self.table.reward_version[0])
        self._seen, self._has_learnt = None, True


def saved_table(trainer_state: Mapping[str, Any], run_epoch: int) -> RewardTable:
    """The table in a trainer's `state_dict`, as the first version of `run_epoch`."""
    return RewardTable.build(trainer_state["ids"], trainer_state["rewards"], (run_epoch, 1))


class AnnotationPipeline:
    """Caption book, annotator and trainer as one part of a run; every method may be called from any thread.

    Models that need no judgements get `annotator=None`: then nothing is asked and no service is started. A `service` is
    started, watched and ended with the pipeline, a `judge` in this process is closed with it. Either `start` (asynchronous) or `turn` (one process), not both.
    """

    def __init__(
        self,
        book: CaptionBook,
        trainer: RewardTrainer,
        *,
        annotator: Annotator | None = None,
        service: ServiceProcess | None = None,
        judge: Judge | None = None,
        publish_interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book, self._trainer, self._annotator, self._service, self._judge = book, trainer, annotator, service, judge
        self._publish_interval_s, self._clock = publish_interval_s, clock
        self._lock = threading.Lock()  # of the trainer
        self._unlearnt: list[JudgedCaption] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        if service is not None:
            service.ensure_running()

    @property
    def problem(self) -> str | None:
        """Why no caption is judged any more; None as long as all is well or may become well by itself."""
        return (self._annotator.problem if self._annotator else None) or self._failure

    def report(
        self, texts: Mapping[int, str], counts: Mapping[int, int], worker_id: str, sequence_number: int, env_steps: int
    ) -> tuple[str, int]:
        """Take in a worker's caption report; see `CaptionBook.take_report`."""
        return self._book.take_report(texts, counts, worker_id, sequence_number, env_steps)

    def turn(self, max_labels: int) -> RewardTable:
        """Ask for at most `max_labels` judgements, learn them and return the newest table, all in this thread."""
        judged = self._annotator.turn(max_labels) if self._annotator else []
        with self._lock:
            self._learn(judged)
            self._trainer.publish()
            return self._trainer.table

    def _learn(self, judged: Sequence[JudgedCaption]) -> None:
        if self._annotator and self._annotator.judge:
            self._trainer.calibrate(self._annotator.judge.threshold)
        if judged and self._service:
            self._service.served()
        self._trainer.learn(judged)

    def start(self) -> None:
        """Begin to ask, learn and publish in the background."""
        if self._annotator:
            self._annotator.start()
        self._thread = threading.Thread(target=self._run, name="reward-training", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        failures, publish_at = 0, self._clock()
        while not self._stop.is_set():
            try:
                self._learn_what_came()
                if self._clock() >= publish_at:
                    started = self._clock()
                    with self._lock:
                        self._trainer.publish()
                    # A table of a million captions takes long to evaluate: training keeps the processor.
                    publish_at = started + max(self._publish_interval_s, (self._clock() - started) / PUBLISHING_SHARE)
                failures = 0
            except Exception as error:
                failures += 1
                LOG.exception("reward training failed (%d in a row); the run goes on with the last table", failures)
                if failures == MAX_FAILURES_IN_A_ROW:
                    self._failure = f"reward training failed {failures} times in a row, at last with {error!r}"
                    LOG.error("%s: rewards stay as they are until the run is started again", self._failure)
                    return
                self._stop.wait(self._publish_interval_s)

    def _learn_what_came(self) -> None:
        if self._service:
            self._service.ensure_running()
        if self._annotator is None:
            self._stop.wait(self._publish_interval_s)
            return
        self._annotator.wait(self._publish_interval_s)
        with self._lock:  # taken and learnt in one piece, so that no checkpoint falls between
            self._unlearnt += self._annotator.take()
            self._learn(self._unlearnt)
            self._unlearnt = []

    def latest_table(self) -> RewardTable:
        """The newest table; waits for nothing."""
        return self._trainer.table

    def metrics(self) -> dict[str, float | None]:
        """Catalogue figures of the book, annotation and the reward model."""
        figures: dict[str, float | None] = {**self._book.metrics(), **self._trainer.metrics()}
        if self._annotator is None:
            figures |= {"annotations_pending": None, "annotation_age_s": None}
        else:
            figures |= self._annotator.metrics()
        if self._service:
            figures["service_restarts"] = self._service.restarts
        if self._failure:
            figures["annotator_up"] = 0
        return figures

    def top_rewarded(self, n: int, min_count: int) -> list[RewardedCaption]:
        """The `n` captions of highest R > 0 among those seen at least `min_count` times; equal ones by count, then by id."""
        table = self.latest_table()
        counts, probabilities, texts = self._book.look_up(table.ids)
        rows = np.flatnonzero((table.rewards > 0) & (counts >= max(min_count, 1)))
        rows = rows[np.lexsort((table.ids[rows], -counts[rows], -table.rewards[rows]))][:n]
        return [
            RewardedCaption(
                text=texts[row],
                reward=float(table.rewards[row]),
                probability=None if np.isnan(probabilities[row]) else float(probabilities[row]),
                count=int(counts[row]),
            )
            for row in rows
        ]

    def interrupt(self) -> None:
        """From a signal handler: a `turn` that waits for the service stops waiting."""
        if self._annotator:
            self._annotator.interrupt()

    def state_dict(self) -> dict[str, Any]:
        """Book, counters, model and table of one moment; brings captions.sqlite up to date as well."""
        self._book.write_archive()
        with self._lock:
            return {
                "book": self._book.state_dict(),
                "annotator": self._annotator.state_dict() if self._annotator else {},
                "trainer": self._trainer.state_dict(),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; before `start`. An empty state (of a run without annotation so far) changes nothing."""
        if not state:
            return
        self._book.load_state_dict(state["book"])
        if self._annotator:
            self._annotator.load_state_dict(state["annotator"])
        with self._lock:
            self._trainer.load_state_dict(state["trainer"])

    def close(self) -> None:
        """Stop asking and training, end the service, and write the archive."""
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
