"""The embedding reward model: the similarity of a caption to the nearest goal sentence, after ELLM (arXiv 2302.06692),
without a judge.

Invariant: a caption's reward depends only on its text and the goals, so it never changes once it is known.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from configs.annotation_schema import RewardModelConfig
from configs.reward_schema import RobustConfig
from llm_server.annotation import Caption, EmbeddedCaption
from llm_server.annotator.caption_texts import ids_of
from reward_models.goals.masks import masks_of
from reward_models.interface import UNGUARDED, Asks, Evidence, RewardModel, without_empty

MAX_GOALS = 64
THRESHOLDS = {"sentences": 0.45, "bag-of-words": 0.35}
"""Chosen with the goals of the NetHack presets on tests/llm_server/data/nethack_labelled.jsonl (balanced accuracy 0.76
and 0.72)."""
WORDS = re.compile(r"[a-z]+|\d+|\$")
STOP_WORDS = "a an and are at by for from has have in is it its of on the there to with you your"


class EmbeddingModel(RewardModel):
    """R = the largest cosine with a goal if it exceeds the threshold, else 0.

    `sentences`: cosines of sentence embeddings, computed in the annotation service. `bag-of-words`: cosines of word
    counts without stop words, computed here. With `goal_once_per_episode` the table holds the goal of each rewarded
    caption, and the learner pays a goal once.
    """

    name = "embedding"
    takes_goals = True

    def __init__(self, config: RewardModelConfig, seed: int = 0, robust: RobustConfig = UNGUARDED) -> None:
        super().__init__(config, seed, robust)
        if config.threshold != -1 and not -1 < config.threshold < 1:
            raise ValueError(
                f"reward_model.threshold is a cosine in (-1, 1), got {config.threshold}; -1 is the default"
            )
        if not 0 < len(config.goals) <= MAX_GOALS:
            raise ValueError(f"reward_model.goals must be 1 to {MAX_GOALS} sentences, got {len(config.goals)}")
        self.asks = Asks.NOTHING if config.embedding == "bag-of-words" else Asks.EMBEDDINGS
        self._threshold = THRESHOLDS[config.embedding] if config.threshold == -1 else config.threshold
        self._is_once = config.goal_once_per_episode
        self._goals = [_bag(goal) for goal in config.goals]
        self._nearest: dict[int, tuple[float, int]] = {}  # caption id -> largest cosine and its goal

    def _add(self, item: Evidence) -> None:
        if isinstance(item, EmbeddedCaption) and not np.isnan(item.cosines).any():
            goal = int(item.cosines.argmax())
            self._nearest[item.caption.id] = float(item.cosines[goal]), goal

    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """[N] f32: R of each caption, NaN before it was embedded."""
        cosines, _ = self._look_up(captions)
        return without_empty(captions, np.where(cosines <= self._threshold, 0.0, cosines))

    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64: cosine minus the threshold."""
        return self._look_up(captions)[0] - self._threshold

    def goals(self, captions: Sequence[Caption]) -> np.ndarray | None:
        """[N, 4] u64 if goals are paid once per episode, else None."""
        if not self._is_once:
            return None
        cosines, goals = self._look_up(captions)
        is_text = ids_of(captions) != 0
        return masks_of(np.where(is_text & (cosines > self._threshold), goals, -1))

    def _look_up(self, captions: Sequence[Caption]) -> tuple[np.ndarray, np.ndarray]:
        ids = ids_of(captions).tolist()
        if self.asks is Asks.NOTHING:
            for row, number in enumerate(ids):
                if number not in self._nearest:
                    cosines = [_cosine(_bag(captions[row].text), goal) for goal in self._goals]
                    self._nearest[number] = max(cosines), int(np.argmax(cosines))
        found = [self._nearest.get(number, (np.nan, -1)) for number in ids]
        return np.array([cosine for cosine, _ in found], np.float64), np.array([goal for _, goal in found], np.int8)

    def retain(self, ids: Set[int]) -> None:
        """Forget the other captions' cosines; a frozen model keeps all, because it would not get them again."""
        if not self._is_frozen:
            self._nearest = {number: nearest for number, nearest in self._nearest.items() if number in ids}

    def state_dict(self) -> dict[str, Any]:
        """Cosines and goals by caption."""
        return {
            "ids": np.array(list(self._nearest), np.uint64),
            "cosines": np.array([cosine for cosine, _ in self._nearest.values()], np.float64),
            "goals": np.array([goal for _, goal in self._nearest.values()], np.int8),
            "is_frozen": self._is_frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        nearest = zip(state["cosines"].tolist(), state["goals"].tolist(), strict=True)
        self._nearest = dict(zip(state["ids"].tolist(), nearest, strict=True))
        self._is_frozen = state["is_frozen"]


def _bag(text: str) -> Counter[str]:
    """Word counts, in lower case, without stop words and plural s."""
    words = (word.removesuffix("s") for word in WORDS.findall(text.lower()) if word not in STOP_WORDS.split())
    return Counter(word for word in words if word)


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    norm = np.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))
    return float(sum(n * other[word] for word, n in one.items()) / norm) if norm else 0.0
