"""Computes each distinct row of a batch once: most rows of a NetHack batch repeat.

- `distinct_rows` encodes each distinct row once and copies the result to its repeats.
- `EncodingCache` keeps encodings through a rollout, for as long as the weights that made them are in use.
- `GlyphConvolution` convolves embedded categories as sums of table rows. The product of a category's embedding with one tap of the
  kernel is the same wherever the category stands, so it is computed once per category; a cell's output is the sum of its neighbours'
  rows, and a row's gradient the sum over the cells that it went to. In training this takes a CPU about half the time of embedding and
  convolving.
- `RepeatingEncoder` is the base class of the encoders made of such parts.

Invariant: rows share a result only where all their bytes are equal; a row's result, gradients included, is that of the row encoded
alone, up to rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
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
    places = np.array(
        [ranks.setdefault(key, len(ranks)) for key in array.view(f"V{array.strides[0]}").ravel().tolist()]
    )
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
    projected = [
        F.linear(part.distinct, weight, bias) for part, weight, bias in zip(parts, columns, biases, strict=True)
    ]
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
        rows = [
            start + (np.arange(size) if one is None else one)
            for one, start, size in zip(places, starts, ctx.sizes, strict=True)
        ]
        return F.embedding_bag(torch.from_numpy(np.stack(rows, 1)), torch.cat(tables), mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradients = gradients.contiguous()
        return None, *[
            gradients if one is None else _add_up(gradients, one, size)
            for one, size in zip(ctx.places, ctx.sizes, strict=True)
        ]


def _add_up(gradients: Tensor, places: np.ndarray, num_rows: int) -> Tensor:
    """[num_rows, F]: the sum of the gradients [N, F] of each row's `places` [N]; a bag is summed in float32, whatever its dtype."""
    counts = np.bincount(places, minlength=num_rows)
    order = np.argsort(places.astype(np.min_scalar_type(num_rows)), kind="stable")
    return F.embedding_bag(torch.from_numpy(order), gradients, torch.from_numpy(np.cumsum(counts) - counts), mode="sum")


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


SIDE_FEATURES = 128
"""Width of the parts beside the main one (blstats, message)."""
Part = tuple[Tensor, Callable[[Tensor], Tensor]]
"""Rows [N, columns], and what makes [M, features] of M of them."""


class RepeatingEncoder(nn.Module):
    """Encodes window, blstats, message and the like by themselves, each distinct row once where it was made with `reuses`."""

    repeating: tuple[str, ...]
    """Parts whose rows seldom change from one step to the next."""
    num_features: int

    def __init__(self, *, reuses: bool) -> None:
        super().__init__()
        self._reuses = reuses

    def forward(self, obs: Mapping[str, Tensor], caches: Mapping[str, EncodingCache] | None = None) -> Tensor:
        """Features [N, num_features] f32 or the autocast dtype; `caches` (of `repeating`) remember from one call to the next."""
        if not caches:
            return torch.cat([part.rows() for part in self.parts(obs)], -1)
        split = self.split(obs).items()
        return torch.cat(
            [caches[name](rows, encode) if name in caches else encode(rows) for name, (rows, encode) in split], -1
        )

    def parts(self, obs: Mapping[str, Tensor]) -> list[RepeatedRows]:
        """The features of `forward`, side by side, before what repeats itself is repeated."""
        encode = encode_distinct if self._reuses else encode_all
        return [encode(*part) for part in self.split(obs).values()]

    def split(self, obs: Mapping[str, Tensor]) -> dict[str, Part]:
        """The observations [N, ...] part by part, in the order of their features."""
        raise NotImplementedError


def two_layers(num_inputs: int, width: int = SIDE_FEATURES) -> nn.Sequential:
    """[N, num_inputs] -> [N, width]."""
    return nn.Sequential(nn.Linear(num_inputs, width), nn.ELU(), nn.Linear(width, width), nn.ELU())


def convolve_glyphs(glyphs: Tensor, embedding: nn.Embedding, convolutions: nn.Sequential) -> Tensor:
    """[N, O, rows, columns], channels last in memory: `convolutions` over the embedded `glyphs` [N, rows, columns]."""
    first, *rest = convolutions
    if (
        glyphs.device.type != "cpu" or not torch.is_grad_enabled()
    ):  # sums of rows pay on the way back, and for many crops at once
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
    places = (
        ranks.reshape(num, rows // side, side, columns // side, side).transpose(2, 4, 0, 1, 3).reshape(side * side, -1)
    )
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
    table = F.pad(
        _tap_table(embedding, there, weight, bias), (0, 0, 0, 0, 0, 1)
    )  # the last category is what lies outside
    return _SumOfTaps.apply(table, padded).unflatten(0, categories.shape).movedim(-1, 1)


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


class _SumOfTaps(torch.autograd.Function):
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
