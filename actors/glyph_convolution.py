"""Convolutions over embedded categories, as sums of table rows: of a crop's 81 cells few are distinct.

The product of a category's embedding with one tap of the kernel is the same wherever the category stands, so it is computed
once for each category in the batch; a cell's output is then the sum of its neighbours' rows, and the gradient of a row the sum
over the cells that it went to. In training this takes a CPU about half the time of embedding and convolving.

Invariant: the result is that of `conv2d(embedding(categories))`, up to rounding, gradients included.
"""

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from actors.distinct_rows import sum_of_rows


def convolve_glyphs(glyphs: Tensor, embedding: nn.Embedding, convolutions: nn.Sequential) -> Tensor:
    """[N, O, rows, columns], channels last in memory: `convolutions` over the embedded `glyphs` [N, rows, columns]."""
    first, *rest = convolutions
    if glyphs.device.type != "cpu" or not torch.is_grad_enabled():  # sums of rows pay on the way back, and for many crops at once
        return convolutions(embedding(glyphs.long()).movedim(-1, 1))  # channels last in memory
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    maps = convolve_categories(glyphs, embedding.weight, first.weight, first.bias)
    for layer in rest:
        maps = layer(maps)
    return maps


def embed_patches(glyphs: Tensor, embedding: nn.Embedding, layer: nn.Conv2d) -> Tensor:
    """[N, O, rows / k, columns / k], channels last in memory: `layer`, whose kernel and stride are k, over `glyphs` [N, rows, columns]."""
    if glyphs.device.type != "cpu":
        return layer(embedding(glyphs.long()).movedim(-1, 1))
    assert layer.bias is not None
    side = layer.kernel_size[0]
    there, ranks = _rank(glyphs.numpy(), len(embedding.weight))
    # Of each cell within a patch, in all patches: [k * k, N * rows / k * columns / k].
    num, rows, columns = glyphs.shape
    places = ranks.reshape(num, rows // side, side, columns // side, side).transpose(2, 4, 0, 1, 3).reshape(side * side, -1)
    table = _tap_table(embedding.weight, there, layer.weight, layer.bias)
    sums = sum_of_rows(list(places), table.unbind(1))
    return sums.unflatten(0, (num, rows // side, columns // side)).movedim(-1, 1)


def convolve_categories(categories: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[N, O, rows, columns], channels last in memory, in the autocast dtype or that of the parameters; on a CPU, with zero padding.

    `categories` [N, rows, columns] integers, `embedding` [V, E], `weight` [O, E, k, k] with odd k, `bias` [O].
    """
    radius = weight.shape[-1] // 2
    there, ranks = _rank(categories.numpy(), len(embedding))
    padded = np.pad(ranks, ((0, 0), (radius, radius), (radius, radius)), constant_values=len(there))
    table = F.pad(_tap_table(embedding, there, weight, bias), (0, 0, 0, 0, 0, 1))  # the last category is what lies outside
    return _SumOfRows.apply(table, padded).unflatten(0, categories.shape).movedim(-1, 1)


def _rank(maps: np.ndarray, num_categories: int) -> tuple[np.ndarray, np.ndarray]:
    """Which categories there are, and `maps` with each as its place among them (i32)."""
    there = np.flatnonzero(np.bincount(maps.ravel(), minlength=num_categories))
    ranks = np.zeros(num_categories, np.int32)
    ranks[there] = np.arange(len(there))
    return there, ranks[maps]


def _tap_table(embedding: Tensor, there: np.ndarray, weight: Tensor, bias: Tensor) -> Tensor:
    """[categories, k * k, O]: what each category `there` adds to an output by each tap of the kernel, in the autocast dtype or that of the
    parameters; the bias is in the middle tap, which each output has once."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    with torch.autocast("cpu", enabled=False):
        taps = weight.permute(1, 2, 3, 0).flatten(1)  # [E, k * k * O]
        table = (embedding[torch.from_numpy(there)] @ taps).unflatten(1, (-1, len(bias)))
        centre = table.shape[1] // 2
        return (table + F.pad(bias.unsqueeze(0), (0, 0, centre, table.shape[1] - 1 - centre))).to(dtype)


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
