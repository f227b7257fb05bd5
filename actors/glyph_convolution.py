"""A convolution over embedded categories, as sums of table rows: of a crop's 81 cells few are distinct.

The product of a category's embedding with one tap of the kernel is the same wherever the category stands, so it is computed
once for each category in the batch; a cell's output is then the sum of its neighbours' rows, and the gradient of a row the sum
over the cells that it went to. In training this takes a CPU about half the time of embedding and convolving.

Invariant: the result is that of `conv2d(embedding(categories))` with zero padding, up to rounding, gradients included.
"""

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def convolve_categories(categories: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[N, O, rows, columns], channels last in memory, in the autocast dtype or that of the parameters; on a CPU.

    `categories` [N, rows, columns] integers, `embedding` [V, E], `weight` [O, E, k, k] with odd k, `bias` [O].
    """
    maps, radius = categories.numpy(), weight.shape[-1] // 2
    there = np.flatnonzero(np.bincount(maps.ravel(), minlength=len(embedding)))
    rank = np.zeros(len(embedding), np.int32)
    rank[there] = np.arange(len(there))
    padded = np.pad(rank[maps], ((0, 0), (radius, radius), (radius, radius)), constant_values=len(there))
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    with torch.autocast("cpu", enabled=False):
        taps = weight.permute(1, 2, 3, 0).flatten(1)  # [E, k * k * O]
        table = (embedding[torch.from_numpy(there)] @ taps).unflatten(1, (-1, len(bias)))
        centre = radius * weight.shape[-1] + radius
        table = table + F.pad(bias.unsqueeze(0), (0, 0, centre, centre))  # each output has the row of its own cell once
        table = F.pad(table, (0, 0, 0, 0, 0, 1))  # the last category is what lies outside
        return _SumOfRows.apply(table.to(dtype), padded).unflatten(0, categories.shape).movedim(-1, 1)


class _SumOfRows(torch.autograd.Function):
    """Row sums [cells, O] of `table` [categories + 1, k * k, O] over each cell's k x k neighbourhood in `padded`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, padded: np.ndarray) -> Tensor:
        num_categories, num_taps, _ = table.shape
        side = int(num_taps**0.5)
        windows = sliding_window_view(padded, (side, side), (1, 2)).reshape(-1, num_taps)
        rows = windows * np.int32(num_taps) + np.arange(num_taps, dtype=np.int32)
        ctx.padded, ctx.shape = padded, (num_categories, num_taps)
        return F.embedding_bag(torch.from_numpy(rows), table.flatten(0, 1), mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> tuple[Tensor, None]:
        padded, (num_categories, num_taps) = ctx.padded, ctx.shape
        side, columns = int(num_taps**0.5), padded.shape[2]
        inner = (slice(None), *[slice(side // 2, -(side // 2) or None)] * 2)
        gradients = d_outputs.new_zeros(*padded.shape, d_outputs.shape[-1])  # with nothing outside
        gradients[inner] = d_outputs.view_as(gradients[inner])
        # The cells of each category in turn, and for each tap the outputs in which it saw them.
        seen = np.ascontiguousarray(padded[inner]).ravel()
        by_category = np.argsort(seen.astype(np.min_scalar_type(num_categories)), kind="stable")
        places = np.arange(padded.size, dtype=np.int32).reshape(padded.shape)[inner].ravel()[by_category]
        offsets = (np.arange(side)[:, None] - side // 2) * columns + np.arange(side) - side // 2
        cells = (places - offsets.astype(np.int32).reshape(-1, 1)).ravel()
        counts = np.bincount(seen, minlength=num_categories)
        starts = np.arange(num_taps)[:, None] * len(seen) + (np.cumsum(counts) - counts)
        bags = torch.from_numpy(starts.astype(np.int32).ravel())
        sums = F.embedding_bag(torch.from_numpy(cells), gradients.flatten(0, 2), bags, mode="sum")
        return sums.unflatten(0, (num_taps, num_categories)).transpose(0, 1), None
