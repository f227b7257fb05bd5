"""Where caption ids lie in a sorted array of them: what makes a look-up in a table of a million captions cheap.

Invariant: the answer is that of a binary search over the whole array, whatever the ids are; ids that are hashes, as caption
ids are, spread evenly over their leading bits, so that two to four comparisons are enough.
"""

import numpy as np


class IdIndex:
    """Sorted ids split by their leading bits, as many buckets as there are ids or half as many."""

    def __init__(self, ids: np.ndarray) -> None:
        """`ids` [N] u64, strictly increasing, N >= 1; kept, not copied."""
        self._ids = ids
        bits = max(1, len(ids).bit_length() - 1)
        self._shift = np.uint64(64 - bits)
        self._starts = np.zeros(2**bits + 1, np.int32)
        sizes = np.bincount((ids >> self._shift).astype(np.int64), minlength=2**bits)
        np.cumsum(sizes, out=self._starts[1:])
        self._depth = int(sizes.max()).bit_length()

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions int and known bool, both in the shape of `ids` (u64); the position of an unknown id is any valid one."""
        buckets = (ids >> self._shift).astype(np.int64)
        low, high = self._starts.take(buckets), self._starts.take(buckets + 1)
        # A binary search of all ids at once, each in its own bucket: random access to memory overlaps, a search one by one waits for each.
        for _ in range(self._depth):
            middle = (low + high) >> 1
            is_less = (self._ids.take(middle, mode="clip") < ids) & (middle < high)
            low, high = np.where(is_less, middle + 1, low), np.where(is_less, high, middle)
        positions = np.minimum(low, len(self._ids) - 1)
        return positions, self._ids.take(positions) == ids
