"""Computes with each distinct row of a batch once: most of a NetHack batch repeats itself.

Invariant: rows share a result only where all their bytes are equal, and a row's result is what it alone gives, up to rounding,
whatever else is in the batch; gradients of equal rows are added in float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GRANULE, MAX_SIZES = 64, 32
"""Distinct rows are filled up to a multiple of the granule, within the number of all rows; where these are so many that it would be one
of more sizes than this, to a multiple of the granule doubled as often as needed."""


@dataclass(frozen=True, slots=True)
class RepeatedRows:
    """N rows of features, of which equal ones are there once."""

    distinct: Tensor
    """[M, F], some of them in no place."""
    places: np.ndarray | None = None
    """[N] i64: which of them each row is; None where each is its own."""

    def rows(self) -> Tensor:
        """All of them, [N, F]."""
        return self.distinct if self.places is None else sum_of_rows([self.places], [self.distinct])


def encode_all(rows: Tensor, encode: Callable[[Tensor], Tensor]) -> RepeatedRows:
    """What `encode` makes of `rows`, each by itself: the form of `encode_distinct` without its saving."""
    return RepeatedRows(encode(rows))


def encode_distinct(rows: Tensor, encode: Callable[[Tensor], Tensor]) -> RepeatedRows:
    """What `encode` ([M, columns] -> [M, F]) makes of `rows` [N, columns]; on a CPU it is asked for distinct rows only."""
    if rows.device.type != "cpu":  # the number of distinct rows would have to come back to the host first
        return RepeatedRows(encode(rows))
    array = np.ascontiguousarray(rows.numpy())
    ranks: dict[bytes, int] = {}
    places = np.array([ranks.setdefault(key, len(ranks)) for key in array.view(f"V{array.strides[0]}").ravel().tolist()])
    # Some rows are encoded for nobody: libraries prepare, and keep, code for every number of rows that they meet.
    granule = GRANULE
    while len(places) > granule * MAX_SIZES:
        granule *= 2
    first = np.zeros(min(-(-len(ranks) // granule) * granule, len(places)), np.int64)
    first[places[::-1]] = np.arange(len(places))[::-1]
    return RepeatedRows(encode(rows[torch.from_numpy(first)]), places)


def project(parts: Sequence[RepeatedRows], layer: nn.Linear) -> Tensor:
    """[N, O]: what `layer` makes of the parts' rows side by side; a distinct row is multiplied once."""
    if all(part.places is None for part in parts):
        return layer(torch.cat([part.distinct for part in parts], -1))
    columns = layer.weight.split([part.distinct.shape[1] for part in parts], 1)
    biases = [layer.bias, *[None] * (len(parts) - 1)]
    projected = [F.linear(part.distinct, weight, bias) for part, weight, bias in zip(parts, columns, biases, strict=True)]
    return sum_of_rows([part.places for part in parts], projected)


def sum_of_rows(places: Sequence[np.ndarray | None], tables: Sequence[Tensor]) -> Tensor:
    """[N, F]: the sum over tables [M, F] of their rows `places` [N] (None: of row n for n); on a CPU."""
    return _SumOfRows.apply(places, *tables)


class _SumOfRows(torch.autograd.Function):
    """See `sum_of_rows`."""

    @staticmethod
    def forward(ctx: Any, places: Sequence[np.ndarray | None], *tables: Tensor) -> Tensor:
        ctx.places, ctx.sizes = places, [len(table) for table in tables]
        starts = np.cumsum([0, *ctx.sizes[:-1]])
        rows = [start + (np.arange(size) if one is None else one) for one, start, size in zip(places, starts, ctx.sizes, strict=True)]
        return F.embedding_bag(torch.from_numpy(np.stack(rows, 1)), torch.cat(tables), mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradients = gradients.contiguous()
        return None, *[gradients if one is None else _add_up(gradients, one, size) for one, size in zip(ctx.places, ctx.sizes, strict=True)]


def _add_up(gradients: Tensor, places: np.ndarray, num_rows: int) -> Tensor:
    """[num_rows, F]: the sum of the gradients [N, F] of each row's `places` [N]; a bag is summed in float32, whatever its dtype."""
    counts = np.bincount(places, minlength=num_rows)
    order = np.argsort(places.astype(np.min_scalar_type(num_rows)), kind="stable")
    return F.embedding_bag(torch.from_numpy(order), gradients, torch.from_numpy(np.cumsum(counts) - counts), mode="sum")
