"""`IdRows`, from an id to its row, and `IdValues`, from an id to a number: hash tables in numpy arrays.

A Python dictionary with integer keys and values takes about 130 bytes per entry, these 25 to 45. They are fast for many
ids at once only.

Invariant: rows are numbered in the order in which the ids were added. Ids are hashes, so their lower bits are spread
evenly; others would only make look-ups slow.
"""

from collections.abc import Mapping, Set

import numpy as np

GROWTH = 1.25
"""By which full arrays grow: on average an eighth of them is empty."""


def grown(array: np.ndarray, num_rows: int) -> np.ndarray:
    """`array` where it has `num_rows`, else a longer copy of it."""
    if num_rows <= len(array):
        return array
    rows = max(num_rows, int(GROWTH * len(array)), 64)
    longer = np.empty((rows, *array.shape[1:]), array.dtype)  # what is not written takes no memory
    longer[: len(array)] = array
    return longer


class IdRows:
    """A set of ids, each with a row; open addressing with linear probing. Not thread-safe."""

    def __init__(self) -> None:
        self._ids, self._num = np.empty(0, np.uint64), 0
        self._slots = np.full(64, -1, np.int32)

    def __len__(self) -> int:
        return self._num

    @property
    def ids(self) -> np.ndarray:
        """[N] u64 in the order of rows; not to be changed."""
        return self._ids[: self._num]

    def find(self, ids: np.ndarray) -> np.ndarray:
        """[M] i64: the rows of `ids` [M] u64, -1 for an unknown one."""
        rows = np.full(len(ids), -1, np.int64)
        places, open_ = self._places(ids), np.arange(len(ids))
        while len(open_):
            found = self._slots[places[open_]]
            open_, found = open_[found >= 0], found[found >= 0]  # an empty slot ends the search
            is_it = self._ids[found] == ids[open_]
            rows[open_[is_it]] = found[is_it]
            open_ = open_[~is_it]
            places[open_] = (places[open_] + 1) & (len(self._slots) - 1)
        return rows

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Add `ids` [M] u64, distinct and unknown so far; returns their rows [M] i64."""
        rows = np.arange(self._num, self._num + len(ids))
        self._ids = grown(self._ids, self._num + len(ids))
        self._ids[rows] = ids
        self._num += len(ids)
        if 2 * self._num > len(self._slots):
            self._slots = np.full(1 << (2 * self._num).bit_length(), -1, np.int32)
            self._enter(np.arange(self._num))
        else:
            self._enter(rows)
        return rows

    def replace(self, ids: np.ndarray) -> None:
        """Hold these distinct `ids` [N] u64 instead, in rows of their order."""
        self._ids, self._num = np.empty(0, np.uint64), 0
        self._slots = np.full(64, -1, np.int32)
        self.add(ids)

    def _enter(self, rows: np.ndarray) -> None:
        places = self._places(self._ids[rows])
        while len(rows):
            is_free = self._slots[places] < 0
            self._slots[places[is_free]] = rows[is_free]
            is_left = self._slots[places] != rows  # the slot is taken, by another of these rows perhaps
            rows, places = rows[is_left], (places[is_left] + 1) & (len(self._slots) - 1)

    def _places(self, ids: np.ndarray) -> np.ndarray:
        return (ids & np.uint64(len(self._slots) - 1)).astype(np.int64)


class IdValues:
    """A number per id; not thread-safe."""

    def __init__(self) -> None:
        self._rows, self._values = IdRows(), np.empty(0)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ids(self) -> np.ndarray:
        """[N] u64 in the order in which they came; not to be changed."""
        return self._rows.ids

    @property
    def values(self) -> np.ndarray:
        """[N] f64 of `ids`; not to be changed."""
        return self._values[: len(self._rows)]

    def of(self, ids: np.ndarray) -> np.ndarray:
        """[M] f64: the numbers of `ids` [M] u64, NaN for an unknown one."""
        rows = self._rows.find(ids)
        return np.where(rows < 0, np.nan, self._values.take(rows, mode="clip") if len(self) else np.nan)

    def update(self, numbers: Mapping[int, float]) -> None:
        """Set the numbers of these ids."""
        ids, values = np.fromiter(numbers, np.uint64), np.fromiter(numbers.values(), np.float64)
        rows = self._rows.find(ids)
        is_new = rows < 0
        rows[is_new] = self._rows.add(ids[is_new])
        self._values = grown(self._values, len(self._rows))
        self._values[rows] = values

    def replace(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Hold these distinct `ids` [N] u64 with their `values` [N] f64 instead."""
        self._rows.replace(np.asarray(ids, np.uint64))
        self._values = np.array(values, np.float64)

    def retain(self, ids: Set[int]) -> None:
        """Forget all other ids."""
        is_kept = np.fromiter((number in ids for number in self.ids.tolist()), np.bool_, len(self))
        self.replace(self.ids[is_kept], self.values[is_kept])
