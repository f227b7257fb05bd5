"""Encodings kept through a rollout: what was encoded once under the rollout's weights is not encoded again.

Invariant: rows share an encoding only where all their bytes are equal, and no encoding outlives the weights that made it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class EncodingCache:
    """The encodings of all distinct rows since it was made: for one set of weights, on a CPU, and without gradients.

    It serves the rows that stay as they were in the last step (most of a NetHack batch), those that come back later, and
    those that several environments share.
    """

    def __init__(self, max_rows: int) -> None:
        """`max_rows`: how many rows it will be asked for at most, all calls together."""
        self._max_rows = max_rows
        self._places: dict[bytes, int] = {}
        self._encodings: Tensor | None = None

    def __call__(self, rows: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """What `encode` ([M, columns] -> [M, F]) makes of `rows` [N, columns], as [N, F]; it is asked only for rows not seen before."""
        array = np.ascontiguousarray(rows.numpy())
        known, places, fresh = self._places, [], []
        for index, key in enumerate(array.view(f"V{array.strides[0]}").ravel().tolist()):
            place = known.get(key)
            if place is None:
                place = known[key] = len(known)
                fresh.append(index)
            places.append(place)
        if fresh:
            encoded = encode(rows[torch.from_numpy(np.array(fresh))])
            if self._encodings is None:
                self._encodings = encoded.new_empty(self._max_rows, encoded.shape[1])
            self._encodings[len(known) - len(fresh) : len(known)] = encoded
        assert self._encodings is not None, "no rows"
        return self._encodings.index_select(0, torch.from_numpy(np.array(places)))
