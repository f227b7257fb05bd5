"""The control of what the judge means: rewards permuted among captions of similar frequency, so that amount and rarity stay.

Invariant: where a caption's reward comes from changes only when that source leaves the book; each caption is the source of at most
one other, never of itself; a function of the seed and of the order in which captions became known and left.
"""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

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
        new = np.array([row for row in np.flatnonzero(known & (ids != 0) & (counts > 0)) if int(ids[row]) not in self._sources], np.int64)
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
        return np.array([given.get(self._sources.get(number, -1), np.nan) if number else 0.0 for number in ids.tolist()], np.float32)

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
        return {"ids": np.array(list(self._sources), np.uint64), "sources": np.array(list(self._sources.values()), np.uint64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._sources = dict(zip(state["ids"].tolist(), state["sources"].tolist(), strict=True))
