"""Encodes each distinct row of a batch once: most of a NetHack batch repeats itself.

Invariant: a row's result is what encoding it alone gives, whatever else is in the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class DistinctRows(nn.Module):
    """Applies an encoder to the distinct rows of integers in a batch, on a CPU; without parameters."""

    _multipliers: Tensor

    def __init__(self, num_columns: int) -> None:
        super().__init__()
        multipliers = torch.randint(2**62, (num_columns,), generator=torch.Generator().manual_seed(0)) * 2 + 1
        self.register_buffer("_multipliers", multipliers, persistent=False)

    def forward(self, rows: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """`encode` maps [M, num_columns] integers to [M, F]; its results for `rows` [N, num_columns], as [N, F]."""
        if rows.device.type != "cpu":  # the number of distinct rows would have to come back to the host first
            return encode(rows)
        # Rows with one 64-bit multiply-and-add hash are taken as equal: two distinct rows share it with a chance of about 2^-52.
        hashes = (rows.long() * self._multipliers).sum(1)
        distinct, inverse = torch.unique(hashes, return_inverse=True)
        representatives = torch.empty_like(distinct).scatter_(0, inverse, torch.arange(len(hashes)))
        # In float32, so that the gradients of many equal rows are summed without bf16's rounding.
        return encode(rows[representatives]).float().index_select(0, inverse)
