"""`RewardTrainer`: trains a reward model and publishes its reward tables.

Invariant: table versions only increase; all rewards of a table are computed at the same time with the same
normalisation.
"""

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from configs.reward_schema import RobustConfig
from llm_server.annotation import Caption
from llm_server.annotator.caption_book import CaptionBook
from reward_models.distance import TableDistances
from reward_models.goals.masks import masks_of
from reward_models.interface import UNGUARDED, Asks, Evidence, RewardModel
from reward_models.shaping import RewardShaping
from reward_models.table import RewardTable


class RewardTrainer:
    """One reward model with its shaping; not thread-safe (its owner locks)."""

    def __init__(
        self,
        model: RewardModel,
        shaping: RewardShaping,
        book: CaptionBook,
        run_epoch: int,
        robust: RobustConfig = UNGUARDED,
    ) -> None:
        self.table = RewardTable.empty(run_epoch)
        """The newest table; versions are (run_epoch, n)."""
        self._model, self._shaping, self._book = model, shaping, book
        self._metrics: Mapping[str, float] = {}
        self._distances = TableDistances(robust.distance_alarm)
        self._disagreement: float | None = None
        self._seen: tuple[int, int] | None = None  # the book's revision and evictions at the last evaluation
        self._has_learnt = False
        self._threshold: float | None = None
        self._initial = copy.deepcopy({"model": model.state_dict(), "options": shaping.state_dict(), "figures": {}})
        self.on_retain: Callable[[Set[int]], None] | None = None
        """Called with the remaining captions whenever others have left the book."""

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to train on."""
        return self._model.is_settled

    def calibrate(self, threshold: float) -> None:
        """Set the judge's threshold in the model; does nothing if it is unchanged."""
        if threshold != self._threshold:
            self._threshold = threshold
            self._model.calibrate(threshold)
            self._has_learnt = True

    def begin_anew(self) -> None:
        """Reset the model to its initial state. The newest table stays until the next one is published."""
        self.adopt(copy.deepcopy(self._initial))
        self._threshold = None

    def learn(self, evidence: Sequence[Evidence]) -> None:
        """Give new evidence to the model."""
        if evidence:
            self._model.learn(evidence)
            self._has_learnt = True

    def note_labels(self, num: int) -> None:
        """Set the number of labels so far, which ends the warm-up."""
        was_warm = self._shaping.is_warm
        self._shaping.note_labels(num)
        self._has_learnt |= self._shaping.is_warm != was_warm

    def train(self) -> None:
        """One turn of gradient training, unless the model is settled."""
        if not self._model.is_settled:
            self._metrics = self._model.train()
            self._has_learnt = True

    @property
    def is_due(self) -> bool:
        """Whether a new table could differ from the last one."""
        now = self._book.revision, self._book.num_evicted
        is_outdated = self._has_learnt or self._model.depends_on_counts or self._model.is_outdated
        return now != self._seen or is_outdated

    @property
    def needs_preparation(self) -> bool:
        """Whether `prepare` shortens the next `publish`."""
        return self._model.reads_texts and self.is_due

    def prepare(self, captions: Sequence[Caption]) -> None:
        """Let the model compute and cache its outputs for `captions`, to shorten the next `publish`."""
        self._model.margins(captions)

    def publish(self) -> RewardTable | None:
        """A new table over all captions of the book, or None if it would equal the last one."""
        if not self.is_due:
            return None
        now = self._book.revision, self._book.num_evicted
        captions, counts = self._book.counted_captions()
        ids = captions.ids
        if self._seen is not None and now[1] != self._seen[1]:
            remaining = set(ids.tolist())
            self._model.retain(remaining)
            self._shaping.retain(remaining)
            if self.on_retain:
                self.on_retain(remaining)
        rewards = np.full(len(ids), np.nan, np.float32)
        if self._model.asks is Asks.NOTHING or self._shaping.is_warm:
            rewards = self._shaping.apply(ids, counts, self._model.score(captions, counts))
        run_epoch, number = self.table.reward_version
        table = RewardTable.build(ids, rewards, (run_epoch, number + 1), self._model.goals(captions))
        deviations = self._model.deviations(captions)
        if self._book.wants_margins:
            self._book.note_margins(ids, self._model.margins(captions))
        if self._book.wants_deviations:
            self._book.note_margins(ids, deviations)
        self._disagreement = _mean(deviations, counts)
        self._model.adopt_confident(captions, counts)
        self._seen, self._has_learnt = now, False
        if table.equals(self.table):
            return None
        self._distances.note(self.table, table, ids, counts)
        self.table = table
        return table

    def metrics(self) -> dict[str, float | None]:
        """Metrics by name; None for what the model has none of."""
        return {
            "reward_version": self.table.reward_version[1],
            "reward_model_accuracy": self._metrics.get("accuracy"),
            "reward_model_disagreement": self._disagreement,
            **self._model.metrics(),
            **self._distances.metrics(),
        }

    def state_dict(self) -> dict[str, Any]:
        """The model, its shaping and the newest table."""
        return {
            "model": self._model.state_dict(),
            "options": self._shaping.state_dict(),
            "ids": self.table.ids,
            "rewards": self.table.rewards,
            "goals": self.table.goals,
            "figures": dict(self._metrics),
            "disagreement": self._disagreement,
            "distances": self._distances.state_dict(),
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Load a model that was trained elsewhere: `model`, `options` and `figures` of a trainer's state."""
        self._model.load_state_dict(state["model"])
        self._shaping.load_state_dict(state["options"])
        self._metrics = dict(state["figures"])
        self._seen, self._has_learnt = None, True

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, with the same table as the first version of this run epoch."""
        self.adopt(state)
        self._disagreement = state.get("disagreement")
        self._distances.load_state_dict(state.get("distances", {}))
        self.table = saved_table(state, self.table.reward_version[0])


def _mean(values: np.ndarray, counts: np.ndarray) -> float | None:
    """The mean over all occurrences; None where a value is NaN or nothing occurred."""
    if np.isnan(values).any() or not counts.sum():
        return None
    return float(np.average(values, weights=counts))


def saved_table(trainer_state: Mapping[str, Any], run_epoch: int) -> RewardTable:
    """The table in a trainer's `state_dict`, as the first version of `run_epoch`."""
    goals = trainer_state["goals"]
    if goals is not None and goals.ndim == 1:  # of a version whose captions achieved one goal at most: [N] i8
        goals = masks_of(goals)
    return RewardTable.build(trainer_state["ids"], trainer_state["rewards"], (run_epoch, 1), goals)
