"""The classification reward model: a byte-level network learns the judge's answers and scores every caption, labelled
or not.

Invariant: captions are scored with the weights that were best on held-out answers of the judge; there are no other
labels.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.annotation_schema import RewardModelConfig
from llm_server.annotation import Caption, JudgedCaption, log_odds
from reward_models.fitting import Fitting, is_held_out, saved_texts, text_arrays
from reward_models.interface import Asks, Evidence, RewardModel
from reward_models.retrieval import ProbabilityReward

SIZES, DROPOUT = (512, 512), 0.1
MAX_LABELS = 200_000
"""Labels kept per split; the oldest are removed first."""


class ClassificationModel(RewardModel):
    """R is a function of the network's probability q, after ONI-Classification (arXiv 2410.23022).

    Trained on the judge's probabilities (`soft`) or on 1[p > theta] (`hard`, ONI's form). The threshold eta of `binary`
    and `soft` output is by default theta for soft labels, where q approximates p, because a small judge's probabilities
    are not centred at 0.5. For hard labels q is the probability of a positive label, and eta is 0.5.
    """

    name = "classification"
    asks = Asks.JUDGEMENTS

    def __init__(self, config: RewardModelConfig, seed: int = 0) -> None:
        super().__init__(config, seed)
        if config.labels not in ("soft", "hard"):
            raise ValueError(f"reward_model.labels is `soft` or `hard`, got {config.labels!r}")
        self._config, self._reward, self._is_hard = config, ProbabilityReward(config), config.labels == "hard"
        self._labels = {False: _Split(), True: _Split()}  # by whether they are held out
        self._fitting = Fitting(SIZES, DROPOUT, config, seed)
        self._theta = np.nan

    @property
    def num_train(self) -> int:
        """Training labels; 0 before theta is known."""
        return 0 if np.isnan(self._theta) else len(self._labels[False].labels)

    @property
    def num_held_out(self) -> int:
        """Held-out labels."""
        return len(self._labels[True].labels)

    def holds_out(self, num_captions: int) -> bool:
        """There is one caption per label."""
        return self.num_held_out >= num_captions

    @property
    def is_settled(self) -> bool:
        return self._fitting.is_settled(self)

    def calibrate(self, threshold: float) -> None:
        if threshold != self._theta and self._is_hard:
            self._fitting.wake()  # any label may change
        self._theta = threshold
        self._reward.calibrate(0.5 if self._is_hard else threshold)

    def _add(self, item: Evidence) -> None:
        if not isinstance(item, JudgedCaption) or not item.caption.id:
            return
        number, train, held_out = item.caption.id, self._labels[False], self._labels[True]
        is_new, fraction = number not in train.labels, self._config.held_out_fraction
        if number in held_out.labels or (is_new and is_held_out(number, fraction, len(train.labels))):
            held_out.put(item.caption, item.judgement.probability)
        else:
            train.put(item.caption, item.judgement.probability)
            self._fitting.note_example()

    def train(self) -> Mapping[str, float]:
        """Take some gradient steps; `accuracy` is the agreement with the judge on held-out captions."""
        return self._fitting.train(self, self._config.steps_per_turn)

    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """[N] f32: R of each caption, labelled or not; NaN before the first evaluation."""
        return self._reward.rewards(captions, 1.0 / (1.0 + np.exp(-self._fitting.outputs(captions))))

    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64: log-odds minus those of eta."""
        return self._fitting.outputs(captions) - log_odds(self._reward.threshold)

    # -- training examples (see `fitting.Examples`)

    def answers(self, rows: np.ndarray, held_out: bool) -> tuple[list[bytes], np.ndarray]:
        """One caption per label."""
        labels = self._labels[held_out].rows()
        return [labels[row][0] for row in rows], np.array([labels[row][1] for row in rows])

    def targets(self, p: np.ndarray) -> Tensor:
        """Soft or hard labels, smoothed."""
        smoothing = self._config.label_smoothing
        if self._is_hard:
            return torch.from_numpy((p > self._theta) * (1 - smoothing) + 0.5 * smoothing).float()
        return torch.from_numpy(p + smoothing * (self._reward.threshold - p)).float()

    def agreement(self, logits: Tensor, p: np.ndarray) -> float:
        """Fraction of labels on the same side of the threshold as the network's output."""
        is_above = logits.numpy() > log_odds(self._reward.threshold)
        return float(np.mean(is_above == (p > (self._theta if self._is_hard else self._reward.threshold))))

    # -- state

    def retain(self, ids: Set[int]) -> None:
        """Forget every other caption's label and output."""
        for split in self._labels.values():
            split.retain(ids)
        self._fitting.retain(ids)

    def freeze(self, captions: Sequence[Caption], counts: np.ndarray) -> None:
        """Stop training and remove all labels, so that there is nothing to train on."""
        self._is_frozen = True
        self._labels = {False: _Split(), True: _Split()}

    def state_dict(self) -> dict[str, Any]:
        """Labels of both splits, weights, optimiser, counters."""
        return {
            "theta": self._theta,
            "train": self._labels[False].state_dict(),
            "held_out": self._labels[True].state_dict(),
            "fitting": self._fitting.state_dict(),
            "is_frozen": self._is_frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calibrate(state["theta"])
        for held_out, name in ((False, "train"), (True, "held_out")):
            self._labels[held_out].load_state_dict(state[name])
        self._fitting.load_state_dict(state["fitting"])
        self._is_frozen = state["is_frozen"]


class _Split:
    """Labels in the order in which their captions arrived."""

    def __init__(self) -> None:
        self.labels: dict[int, tuple[bytes, float]] = {}
        self._rows: list[tuple[bytes, float]] | None = None

    def put(self, caption: Caption, probability: float) -> None:
        self.labels[caption.id] = caption.text.encode(), probability
        if len(self.labels) > MAX_LABELS:
            del self.labels[next(iter(self.labels))]
        self._rows = None

    def rows(self) -> list[tuple[bytes, float]]:
        if self._rows is None:
            self._rows = list(self.labels.values())
        return self._rows

    def retain(self, ids: Set[int]) -> None:
        self.labels = {number: label for number, label in self.labels.items() if number in ids}
        self._rows = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "ids": np.array(list(self.labels), np.uint64),
            "probabilities": np.array([p for _, p in self.labels.values()], np.float64),
            **text_arrays([text for text, _ in self.labels.values()]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        labels = zip(saved_texts(state), state["probabilities"].tolist(), strict=True)
        self.labels, self._rows = dict(zip(state["ids"].tolist(), labels, strict=True)), None
