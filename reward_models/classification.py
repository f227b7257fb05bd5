"""The classification reward model: a byte-level network learns the judge's answers and scores every caption, labelled
or not.

Invariant: captions are scored with the weights that were best on held-out answers of the judge; the only other labels
are the model's own predictions, where `robust.pseudo_confidence` allows them.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.annotation_schema import RewardModelConfig
from configs.reward_schema import RobustConfig
from llm_server.annotation import Caption, JudgedCaption, log_odds
from reward_models.interface import UNGUARDED, Asks, Evidence, RewardModel
from reward_models.networks.ensemble import Ensemble, bootstrap_weights, lower_bound
from reward_models.networks.fitting import MIN_HELD_OUT, is_held_out, saved_texts, text_arrays
from reward_models.networks.pseudo_labels import PseudoLabels, unlabelled
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
    is_trained = True

    def __init__(self, config: RewardModelConfig, seed: int = 0, robust: RobustConfig = UNGUARDED) -> None:
        super().__init__(config, seed, robust)
        if config.labels not in ("soft", "hard"):
            raise ValueError(f"reward_model.labels is `soft` or `hard`, got {config.labels!r}")
        self._config, self._reward, self._is_hard = config, ProbabilityReward(config), config.labels == "hard"
        # caption id -> text and probability in the order of arrival, by whether the label is held out
        self._labels: dict[bool, dict[int, tuple[bytes, float]]] = {False: {}, True: {}}
        self._rows: dict[bool, list[tuple[int, bytes, float]]] = {}  # the same as lists, until something is new
        self._networks = Ensemble(SIZES, DROPOUT, config, seed, robust)
        self._robust, self._pseudo = robust, PseudoLabels(robust, self._is_hard)
        self._theta = np.nan

    @property
    def num_train(self) -> int:
        """Training labels and pseudo-labels; 0 before theta is known."""
        return 0 if np.isnan(self._theta) else len(self._labels[False]) + len(self._pseudo.examples)

    @property
    def num_held_out(self) -> int:
        """Held-out labels."""
        return len(self._labels[True])

    def holds_out(self, num_captions: int) -> bool:
        """There is one caption per label."""
        return self.num_held_out >= num_captions

    @property
    def is_settled(self) -> bool:
        return self._networks.is_settled(self)

    def calibrate(self, threshold: float) -> None:
        if threshold != self._theta and self._is_hard:
            self._networks.wake()  # any label may change
        self._theta = threshold
        self._reward.calibrate(0.5 if self._is_hard else threshold)

    def _add(self, item: Evidence) -> None:
        if not isinstance(item, JudgedCaption) or not item.caption.id:
            return
        number, train, fraction = item.caption.id, self._labels[False], self._config.held_out_fraction
        held_out = number in self._labels[True] or (number not in train and is_held_out(number, fraction, len(train)))
        labels = self._labels[held_out]
        labels[number] = item.caption.text.encode(), item.judgement.probability
        if len(labels) > MAX_LABELS:
            del labels[next(iter(labels))]
        self._pseudo.drop(number)
        self._rows.clear()
        if not held_out:
            self._networks.note_examples()

    def train(self) -> Mapping[str, float]:
        """Take some gradient steps; `accuracy` is the agreement with the judge on held-out captions."""
        return self._networks.train(self, self._config.steps_per_turn)

    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """[N] f32: R of each caption, labelled or not; NaN before the first evaluation."""
        return self._reward.rewards(captions, _probability(self._log_odds(captions)))

    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64: log-odds minus those of eta."""
        return self._log_odds(captions) - log_odds(self._reward.threshold)

    def _log_odds(self, captions: Sequence[Caption]) -> np.ndarray:
        return lower_bound(self._networks.outputs(captions), self._robust.pessimism)

    def deviations(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64, in log-odds."""
        if self._robust.ensemble == 1:
            return super().deviations(captions)
        return self._networks.outputs(captions).std(axis=0)

    def adopt_confident(self, captions: Sequence[Caption], counts: np.ndarray) -> None:
        """Pseudo-labels are the networks' mean prediction."""
        best_steps = self._networks.best_steps
        if self._is_frozen or not self._pseudo.is_due(best_steps) or not self.holds_out(MIN_HELD_OUT):
            return
        answered = self._labels[False].keys() | self._labels[True].keys()
        num_trained = len(self._labels[False])
        rows = unlabelled(captions, counts, answered, self._config.held_out_fraction, num_trained)
        q = _probability(self._networks.outputs(captions)[:, rows].mean(axis=0))
        num_new = self._pseudo.replace(captions, rows[:, None], q, num_trained, best_steps)
        self._networks.note_examples(num_new)
        self._rows.clear()

    def metrics(self) -> Mapping[str, float]:
        """`pseudo_labels`, if they are enabled."""
        return self._pseudo.metrics()

    # -- training examples (see `networks.fitting.Examples`)

    def answers(self, rows: np.ndarray, held_out: bool) -> tuple[list[bytes], np.ndarray]:
        """One caption per label."""
        labels = self._chosen(rows, held_out)
        return [text for _, text, _ in labels], np.array([p for _, _, p in labels])

    def weights(self, rows: np.ndarray, member: int) -> np.ndarray:
        """By caption."""
        return bootstrap_weights(np.array([number for number, _, _ in self._chosen(rows, False)], np.uint64), member)

    def _chosen(self, rows: np.ndarray, held_out: bool) -> list[tuple[int, bytes, float]]:
        """The examples `rows`: labels, and after those that are trained on, pseudo-labels."""
        if held_out not in self._rows:
            pseudo = [] if held_out else [(each.ids[0], each.texts[0], each.p) for each in self._pseudo.examples]
            self._rows[held_out] = [(number, *label) for number, label in self._labels[held_out].items()] + pseudo
        return [self._rows[held_out][row] for row in rows]

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
        for held_out, labels in self._labels.items():
            self._labels[held_out] = {number: label for number, label in labels.items() if number in ids}
        self._rows.clear()
        self._pseudo.retain(ids)
        self._networks.retain(ids)

    def freeze(self, captions: Sequence[Caption], counts: np.ndarray) -> None:
        """Stop training and remove all labels, so that there is nothing to train on."""
        self._is_frozen = True
        self._labels = {False: {}, True: {}}
        self._pseudo.retain(frozenset())
        self._rows.clear()

    def state_dict(self) -> dict[str, Any]:
        """Labels of both splits, weights, optimiser, counters."""
        return {
            "theta": self._theta,
            "train": _label_arrays(self._labels[False]),
            "held_out": _label_arrays(self._labels[True]),
            "fitting": self._networks.state_dict(),
            "is_frozen": self._is_frozen,
            **self._pseudo.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calibrate(state["theta"])
        self._labels = {False: _saved_labels(state["train"]), True: _saved_labels(state["held_out"])}
        self._pseudo.load_state_dict(state)
        self._rows.clear()
        self._networks.load_state_dict(state["fitting"])
        self._is_frozen = state["is_frozen"]


def _probability(log_odds: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-log_odds))


def _label_arrays(labels: dict[int, tuple[bytes, float]]) -> dict[str, np.ndarray]:
    return {
        "ids": np.array(list(labels), np.uint64),
        "probabilities": np.array([p for _, p in labels.values()], np.float64),
        **text_arrays([text for text, _ in labels.values()]),
    }


def _saved_labels(state: Mapping[str, Any]) -> dict[int, tuple[bytes, float]]:
    labels = zip(saved_texts(state), state["probabilities"].tolist(), strict=True)
    return dict(zip(state["ids"].tolist(), labels, strict=True))
