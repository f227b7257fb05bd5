"""Encodes each distinct row of a batch once: most of a NetHack batch repeats itself.

Invariant: rows share an encoding only where all their bytes are equal, and a row's result is what encoding it alone gives,
whatever else is in the batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def encode_distinct(rows: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """What `encode` ([M, columns] -> [M, F]) makes of `rows` [N, columns], as [N, F]; on a CPU it is asked for distinct rows only."""
    if rows.device.type != "cpu":  # the number of distinct rows would have to come back to the host first
        return encode(rows)
    array = np.ascontiguousarray(rows.numpy())
    ranks: dict[bytes, int] = {}
    places = np.array([ranks.setdefault(key, len(ranks)) for key in array.view(f"V{array.strides[0]}").ravel().tolist()])
    first = np.empty(len(ranks), np.int64)
    first[places[::-1]] = np.arange(len(places))[::-1]
    return _Repeat.apply(encode(rows[torch.from_numpy(first)]), places)


class _Repeat(torch.autograd.Function):
    """Rows `places` [N] of `encoded` [M, F]."""

    @staticmethod
    def forward(ctx: Any, encoded: Tensor, places: np.ndarray) -> Tensor:
        ctx.places, ctx.num_rows = places, len(encoded)
        return encoded.index_select(0, torch.from_numpy(places))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None]:
        # A bag sums in float32, so that the gradients of many equal rows are added without bf16's rounding.
        counts = np.bincount(ctx.places, minlength=ctx.num_rows)
        order = np.argsort(ctx.places.astype(np.min_scalar_type(ctx.num_rows)), kind="stable")
        starts = torch.from_numpy(np.cumsum(counts) - counts)
        return F.embedding_bag(torch.from_numpy(order), gradients.contiguous(), starts, mode="sum"), None
