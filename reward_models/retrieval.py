"""The retrieval reward model: a caption's reward is the judge's own answer about it, nothing is learnt.

Invariant: memory is one probability per labelled caption still in the book; the order of judgements about different
captions does not matter.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from configs.service_schema import RewardModelConfig
from llm_server.annotation import Caption, JudgedCaption, Status


class RetrievalModel:
    """R = 1[p > threshold] (`binary`) or max(0, p - threshold) / (1 - threshold) (`soft`), after ONI-Retrieval (arXiv 2410.23022)."""

    name = "retrieval"
    needs_judgements = True

    def __init__(self, config: RewardModelConfig) -> None:
        if config.threshold != -1 and not 0 <= config.threshold < 1:
            raise ValueError(f"reward_model.threshold is a probability in [0, 1), got {config.threshold}; -1 takes the rubric's")
        if config.output not in ("binary", "soft"):
            raise ValueError(f"reward_model.output is `binary` or `soft`, got {config.output!r}")
        self._is_binary, self._is_configured = config.output == "binary", config.threshold != -1
        self._threshold = config.threshold if self._is_configured else np.nan  # NaN until `calibrate`: nothing can be said yet
        self._probabilities: dict[int, float] = {}

    def calibrate(self, threshold: float) -> None:
        """See `RewardModel`. Labels are kept as probabilities, so a new threshold holds for all of them."""
        if not self._is_configured:
            self._threshold = threshold

    def learn(self, judged: Sequence[JudgedCaption]) -> Mapping[str, float]:
        """Remember the labels; there is nothing to measure."""
        for item in judged:
            if item.judgement.status is Status.OK:
                self._probabilities[item.caption.id] = item.judgement.probability
        return {}

    def score(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f32: R of each caption, NaN without a label or before there is a threshold, 0 for the empty caption."""
        p = np.array([self._probabilities.get(caption.id, np.nan) for caption in captions], np.float64)
        above = p - self._threshold
        rewards = above > 0 if self._is_binary else np.maximum(0.0, above) / (1.0 - self._threshold)
        rewards = np.where(np.isnan(above), np.nan, rewards)
        rewards[[caption.id == 0 for caption in captions]] = 0.0
        return rewards.astype(np.float32)

    def retain(self, ids: Set[int]) -> None:
        """Forget every other caption's label."""
        self._probabilities = {number: p for number, p in self._probabilities.items() if number in ids}

    def state_dict(self) -> dict[str, Any]:
        """Every label, and the threshold, so that a resumed run need not wait for the service to score them."""
        return {
            "threshold": self._threshold,
            "ids": np.array(list(self._probabilities), np.uint64),
            "probabilities": np.array(list(self._probabilities.values()), np.float64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; a threshold that is configured stays."""
        self.calibrate(state["threshold"])
        self._probabilities = dict(zip(state["ids"].tolist(), state["probabilities"].tolist(), strict=True))
