"""Options that any reward model takes, between its scores and the table: warm-up, clipping, and the permuted control of what the judge
means, in which rewards are exchanged among captions of similar frequency, so that their amount and rarity stay.

Invariant: applied once per version, to the whole table. Where a caption's permuted reward comes from changes only when that source leaves
the book; each caption is the source of at most one other, never of itself; a function of the seed and of the order in which captions
became known and left.
"""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from configs.annotation_schema import RewardModelConfig

BAND = 4
"""Captions that are neighbours in frequency and exchange their rewards."""


class Permutation:
    """Who gets whose reward. Captions wait, unknown, until there are enough of them to exchange with."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sources: dict[int, int] = {}

    def apply(self, ids: np.ndarray, counts: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """[N] f32: each caption's source's reward; NaN for captions that have none yet. `ids` [N] u64, NaN in `rewards`: unknown. Those of
        count 0, which no step has shown, wait: nobody could be paid what they were given.

        Those that became known since the last time are sorted by count and cut into bands of 4 neighbours; the last band takes the
        rest. Within a band rewards move on by one place in an order drawn from the seed.
        """
        known = ~np.isnan(rewards)
        new = np.array(
            [row for row in np.flatnonzero(known & (ids != 0) & (counts > 0)) if int(ids[row]) not in self._sources],
            np.int64,
        )
        if len(new) >= BAND:
            new = new[np.lexsort((ids[new], -counts[new]))]
            for start in range(0, len(new) - BAND + 1, BAND):
                end = start + BAND if len(new) - start - BAND >= BAND else len(new)
                band = ids[new[start:end]]
                band = band[np.random.default_rng((self._seed, int(band.min()))).permutation(len(band))]
                self._sources.update(zip(band.tolist(), np.roll(band, 1).tolist(), strict=True))
                if end == len(new):
                    break
        given = dict(zip(ids[known].tolist(), rewards[known].tolist(), strict=True))
        return np.array(
            [given.get(self._sources.get(number, -1), np.nan) if number else 0.0 for number in ids.tolist()], np.float32
        )

    def retain(self, ids: Set[int]) -> None:
        """Forget captions that left the book. Whose reward came from one of them gets what would have gone to it, so that no reward is
        lost and none given twice; the last one of a band counts as new."""
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


class RewardOptions:
    """What `reward_model.warmup_labels`, `permute` and `clip` do to rewards."""

    def __init__(self, config: RewardModelConfig, seed: int) -> None:
        self._config = config
        self._permutation = Permutation(seed) if config.permute else None
        self._num_labels = 0

    def note_labels(self, num: int) -> None:
        """So many answers that are labels have come so far, whatever evidence was made of them."""
        self._num_labels = num

    @property
    def is_warm(self) -> bool:
        """Whether there are labels enough to reward anything."""
        return self._num_labels >= self._config.warmup_labels

    def apply(self, ids: np.ndarray, counts: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """[N] f32 from the model's `rewards` [N] f32 of captions `ids` [N] u64 with `counts` [N] i64; NaN is unknown."""
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
