"""Shaping of any reward model's scores before they enter the table: warm-up, clipping, and a permutation of rewards
among captions of similar frequency, which keeps their amount and rarity but removes the judge's opinion (an ablation).

Invariant: applied once per version, to the whole table. The source of a caption's permuted reward changes only when
that source leaves the book; each caption is the source of at most one other, never of itself. The permutation is a
function of the seed and of the order in which captions became known and left.
"""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from configs.annotation_schema import RewardModelConfig

BAND = 4
"""Number of captions, neighbours in frequency, that exchange their rewards."""


class Permutation:
    """The source of each caption's reward. New captions are unknown until enough of them can exchange rewards."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sources: dict[int, int] = {}

    def apply(self, ids: np.ndarray, counts: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """[N] f32: the reward of each caption's source, NaN for captions without one. `ids` [N] u64; NaN in `rewards`
        is unknown. A caption of count 0, which no step has shown, gets no source: the reward exchanged for it could not
        be paid.

        Captions that became known since the last call are sorted by count and divided into bands of 4 neighbours; the
        last band also has the rest. Within a band rewards move by one place in an order drawn from the seed.
        """
        known = ~np.isnan(rewards)
        has_source = np.array([number in self._sources for number in ids.tolist()], bool)
        new = np.flatnonzero(known & (ids != 0) & (counts > 0) & ~has_source)
        if len(new) >= BAND:
            new = new[np.lexsort((ids[new], -counts[new]))]
            for band in np.split(ids[new], range(BAND, len(new) - BAND + 1, BAND)):
                band = band[np.random.default_rng((self._seed, int(band.min()))).permutation(len(band))]
                self._sources.update(zip(band.tolist(), np.roll(band, 1).tolist(), strict=True))
        by_id = dict(zip(ids[known].tolist(), rewards[known].tolist(), strict=True))
        permuted = [by_id.get(self._sources.get(number, -1), np.nan) if number else 0.0 for number in ids.tolist()]
        return np.array(permuted, np.float32)

    def retain(self, ids: Set[int]) -> None:
        """Forget captions that left the book. A caption whose source left gets the source of that source, so that no
        reward is lost or given twice; the last remaining caption of a band counts as new."""
        before, self._sources = self._sources, {}
        for number, source in before.items():
            if number in ids:
                while source not in ids:
                    source = before[source]
                if source != number:
                    self._sources[number] = source

    def state_dict(self) -> dict[str, Any]:
        """Captions and their sources."""
        return {
            "ids": np.array(list(self._sources), np.uint64),
            "sources": np.array(list(self._sources.values()), np.uint64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._sources = dict(zip(state["ids"].tolist(), state["sources"].tolist(), strict=True))


class RewardShaping:
    """Applies `reward_model.warmup_labels`, `permute` and `clip` to rewards."""

    def __init__(self, config: RewardModelConfig, seed: int) -> None:
        self._config = config
        self._permutation = Permutation(seed) if config.permute else None
        self._num_labels = 0

    def note_labels(self, num: int) -> None:
        """Set the number of answers so far that are labels, whatever evidence was made of them."""
        self._num_labels = num

    @property
    def is_warm(self) -> bool:
        """Whether there are enough labels to reward captions."""
        return self._num_labels >= self._config.warmup_labels

    def apply(self, ids: np.ndarray, counts: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Shaped rewards [N] f32 of the model's `rewards` [N] f32 (NaN: unknown), `ids` [N] u64, `counts` [N] i64."""
        if self._permutation:
            rewards = self._permutation.apply(ids, counts, rewards)
        return np.clip(rewards, -self._config.clip, self._config.clip) if self._config.clip else rewards

    def retain(self, ids: Set[int]) -> None:
        """Forget the other captions."""
        if self._permutation:
            self._permutation.retain(ids)

    def state_dict(self) -> dict[str, Any]:
        """Counter and permutation."""
        return {
            "num_labels": self._num_labels,
            "permutation": self._permutation.state_dict() if self._permutation else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._num_labels = state["num_labels"]
        if self._permutation and state["permutation"] is not None:
            self._permutation.load_state_dict(state["permutation"])
