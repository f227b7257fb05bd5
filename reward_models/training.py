"""`RewardTrainer`: teaches a reward model and makes its tables.

Invariant: table versions only go up; a table holds the rewards of one moment, all normalised alike.
"""

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from llm_server.annotation import Caption
from llm_server.annotator.caption_book import CaptionBook
from reward_models.interface import Asks, Evidence, RewardModel
from reward_models.shaping import RewardOptions
from reward_models.table import RewardTable


class RewardTrainer:
    """One reward model with its options; not thread-safe (its owner locks)."""

    def __init__(self, model: RewardModel, options: RewardOptions, book: CaptionBook, run_epoch: int) -> None:
        self.table = RewardTable.empty(run_epoch)
        """The newest table; versions are (run_epoch, n) and only go up."""
        self._model, self._options, self._book = model, options, book
        self._metrics: Mapping[str, float] = {}
        self._seen: tuple[int, int] | None = None  # the book's revision and evictions at the last evaluation
        self._has_learnt = False
        self._threshold: float | None = None
        self._untaught = copy.deepcopy({"model": model.state_dict(), "options": options.state_dict(), "figures": {}})
        self.on_retain: Callable[[Set[int]], None] | None = None
        """Called with the captions that stay whenever others have left the book."""

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to train on."""
        return self._model.is_settled

    def calibrate(self, threshold: float) -> None:
        """Hand the judge's threshold to the model; called as often as one likes."""
        if threshold != self._threshold:
            self._threshold = threshold
            self._model.calibrate(threshold)
            self._has_learnt = True

    def begin_anew(self) -> None:
        """Forget all that was learnt: the model is as it was at first. The newest table stays until the next is published."""
        self.adopt(copy.deepcopy(self._untaught))
        self._threshold = None

    def learn(self, evidence: Sequence[Evidence]) -> None:
        """Hand new answers to the model."""
        if evidence:
            self._model.learn(evidence)
            self._has_learnt = True

    def note_labels(self, num: int) -> None:
        """See `RewardOptions`; called as often as one likes."""
        was_warm = self._options.is_warm
        self._options.note_labels(num)
        self._has_learnt |= self._options.is_warm != was_warm

    def train(self) -> None:
        """A bounded amount of gradient training, where there is anything to train on."""
        if not self._model.is_settled:
            self._metrics = self._model.train()
            self._has_learnt = True

    @property
    def is_due(self) -> bool:
        """Whether a table could differ from the last."""
        now = self._book.revision, self._book.num_evicted
        return now != self._seen or self._has_learnt or self._model.depends_on_counts

    def prepare(self, captions: Sequence[Caption]) -> None:
        """Take work off the next `publish`: have the model compute, and remember, what it thinks of these."""
        self._model.margins(captions)

    def publish(self) -> RewardTable | None:
        """A new table over all captions of the book, or None where it would equal the last."""
        if not self.is_due:
            return None
        now = self._book.revision, self._book.num_evicted
        captions, counts = self._book.counted_captions()
        ids = np.array([caption.id for caption in captions], np.uint64)
        if self._seen is not None and now[1] != self._seen[1]:
            staying = set(ids.tolist())
            self._model.retain(staying)
            self._options.retain(staying)
            if self.on_retain:
                self.on_retain(staying)
        is_warm = self._model.asks is Asks.NOTHING or self._options.is_warm
        rewards = (
            self._options.apply(ids, counts, self._model.score(captions, counts))
            if is_warm
            else np.full(len(ids), np.nan)
        )
        run_epoch, number = self.table.reward_version
        table = RewardTable.build(ids, rewards, (run_epoch, number + 1), self._model.goals(captions))
        if self._book.wants_margins:
            self._book.note_margins(ids, self._model.margins(captions))
        self._seen, self._has_learnt = now, False
        if table.equals(self.table):
            return None
        self.table = table
        return table

    def metrics(self) -> dict[str, float | None]:
        """Catalogue metrics; the accuracy is None for models that have none to report."""
        return {"reward_version": self.table.reward_version[1], "reward_model_accuracy": self._metrics.get("accuracy")}

    def state_dict(self) -> dict[str, Any]:
        """The model, its options and the newest table."""
        return {
            "model": self._model.state_dict(),
            "options": self._options.state_dict(),
            "ids": self.table.ids,
            "rewards": self.table.rewards,
            "goals": self.table.goals,
            "figures": dict(self._metrics),
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over a model that was trained elsewhere: `model`, `options` and `figures` of a trainer's state."""
        self._model.load_state_dict(state["model"])
        self._options.load_state_dict(state["options"])
        self._metrics = dict(state["figures"])
        self._seen, self._has_learnt = None, True

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`: the same table at once, as the first version of this run epoch."""
        self.adopt(state)
        self.table = saved_table(state, self.table.reward_version[0])


def saved_table(trainer_state: Mapping[str, Any], run_epoch: int) -> RewardTable:
    """The table in a trainer's `state_dict`, as the first version of `run_epoch`."""
    return RewardTable.build(trainer_state["ids"], trainer_state["rewards"], (run_epoch, 1), trainer_state["goals"])
