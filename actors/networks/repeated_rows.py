"""Computes each distinct row of a batch once: most rows of a NetHack batch repeat.

- `encode_rows` encodes each distinct row once and copies the result to its repeats.
- `EncodingCache` keeps encodings during a rollout, while the weights stay the same.
- `convolve_categories` convolves embedded categories as sums of table rows. The product of a category's embedding with
  one tap of the kernel is the same at every position, so it is computed once per category; a cell's output is the sum
  of its neighbours' rows, and a row's gradient the sum over the cells that used it. In training this takes a CPU about
  half the time of embedding and convolving.
- `RepeatingEncoder` is the base class of the encoders built from such branches.

Invariant: rows share a result only if all their bytes are equal; a row's result, gradients included, is that of the row
encoded alone, up to rounding.
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
"""The number of distinct rows is padded to a multiple of GRANULE, at most the number of all rows. If that would allow
more than MAX_SIZES sizes, the granule is doubled as often as needed."""


@dataclass(frozen=True, slots=True)
class RepeatedRows:
    """N rows of features, with equal rows stored once."""

    distinct: Tensor  # [M, F]; padding rows occur in no place
    places: np.ndarray | None = None  # [N] i64: index of each row in `distinct`; None if each row is stored by itself

    def rows(self) -> Tensor:
        """All rows, [N, F]."""
        return self.distinct if self.places is None else sum_of_rows([self.places], [self.distinct])


def encode_rows(rows: Tensor, encode: Callable[[Tensor], Tensor], *, reuses: bool) -> RepeatedRows:
    """`encode` ([M, columns] -> [M, F]) of `rows` [N, columns]; with `reuses` and on a CPU of distinct rows only."""
    if not reuses or rows.device.type != "cpu":  # counting distinct rows would need a transfer to the host
        return RepeatedRows(encode(rows))
    array = np.ascontiguousarray(rows.numpy())
    ranks: dict[bytes, int] = {}
    places = np.array(
        [ranks.setdefault(key, len(ranks)) for key in array.view(f"V{array.strides[0]}").ravel().tolist()]
    )
    # The padding rows are unused: libraries compile and cache code for every number of rows that they meet.
    granule = GRANULE
    while len(places) > granule * MAX_SIZES:
        granule *= 2
    first = np.zeros(min(-(-len(ranks) // granule) * granule, len(places)), np.int64)
    first[places[::-1]] = np.arange(len(places))[::-1]
    return RepeatedRows(encode(rows[torch.from_numpy(first)]), places)


def project(branches: Sequence[RepeatedRows], layer: nn.Linear) -> Tensor:
    """[N, O]: `layer` applied to the concatenated features of all branches; a distinct row is multiplied once."""
    if all(branch.places is None for branch in branches):
        return layer(torch.cat([branch.distinct for branch in branches], -1))
    columns = layer.weight.split([branch.distinct.shape[1] for branch in branches], 1)
    biases = [layer.bias, *[None] * (len(branches) - 1)]
    projected = [
        F.linear(branch.distinct, weight, bias) for branch, weight, bias in zip(branches, columns, biases, strict=True)
    ]
    return sum_of_rows([branch.places for branch in branches], projected)


def sum_of_rows(places: Sequence[np.ndarray | None], tables: Sequence[Tensor]) -> Tensor:
    """[N, F]: the sum over tables [M, F] of their rows `places` [N] (None: row n for n); on a CPU."""
    return _SumOfRows.apply(places, *tables)


class _SumOfRows(torch.autograd.Function):
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
    """[num_rows, F]: the sum of the gradients [N, F] with each of `places` [N]; in float32, whatever the dtype."""
    counts = np.bincount(places, minlength=num_rows)
    order = np.argsort(places.astype(np.min_scalar_type(num_rows)), kind="stable")
    return F.embedding_bag(torch.from_numpy(order), gradients, torch.from_numpy(np.cumsum(counts) - counts), mode="sum")


class EncodingCache:
    """The encodings of all distinct rows since its creation: for one set of weights, on a CPU, without gradients. It
    serves rows that did not change since the last step (most of a NetHack batch), that reappear later, or that several
    environments share; `max_rows` is the maximum number of rows in all calls together."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._places: dict[bytes, int] = {}
        self._encodings: Tensor | None = None

    def __call__(self, rows: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """`encode` ([M, columns] -> [M, F]) of `rows` [N, columns], as [N, F]; it is called for new rows only."""
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
"""Width of the side branches (blstats, message)."""
Branch = tuple[Tensor, Callable[[Tensor], Tensor]]
"""Rows [N, columns], and the function that encodes M of them as [M, features]."""


class RepeatingEncoder(nn.Module):
    """Encodes window, blstats, message ... in separate branches, each distinct row once if made with `reuses`."""

    repeating: tuple[str, ...]  # branches whose rows seldom change from one step to the next
    num_features: int

    def __init__(self, *, reuses: bool) -> None:
        super().__init__()
        self._reuses = reuses

    def forward(self, obs: Mapping[str, Tensor], caches: Mapping[str, EncodingCache] | None = None) -> Tensor:
        """Features [N, num_features] f32 or the autocast dtype; `caches` (of `repeating`) persist between calls."""
        if not caches:
            return torch.cat([branch.rows() for branch in self.encode_branches(obs)], -1)
        branches = self.branches(obs).items()
        features = [caches[name](rows, encode) if name in caches else encode(rows) for name, (rows, encode) in branches]
        return torch.cat(features, -1)

    def encode_branches(self, obs: Mapping[str, Tensor]) -> list[RepeatedRows]:
        """The features of `forward`, branch by branch, with repeated rows stored once."""
        return [encode_rows(*branch, reuses=self._reuses) for branch in self.branches(obs).values()]

    def branches(self, obs: Mapping[str, Tensor]) -> dict[str, Branch]:
        """The observations [N, ...] by branch, in the order of their features."""
        raise NotImplementedError


def two_layers(num_inputs: int, width: int = SIDE_FEATURES) -> nn.Sequential:
    """[N, num_inputs] -> [N, width]."""
    return nn.Sequential(nn.Linear(num_inputs, width), nn.ELU(), nn.Linear(width, width), nn.ELU())


def convolve_glyphs(glyphs: Tensor, embedding: nn.Embedding, convolutions: nn.Sequential) -> Tensor:
    """[N, O, rows, columns], channels last in memory: `convolutions` over the embedded `glyphs` [N, rows, columns]."""
    # Sums of rows are faster only in the backward pass and for many crops at once.
    if glyphs.device.type != "cpu" or not torch.is_grad_enabled():
        return convolutions(embedding(glyphs.long()).movedim(-1, 1))
    first = convolutions[0]
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    return convolutions[1:](convolve_categories(glyphs, embedding.weight, first.weight, first.bias))


def embed_patches(glyphs: Tensor, embedding: nn.Embedding, layer: nn.Conv2d) -> Tensor:
    """[N, O, rows / k, columns / k], channels last: `layer` (kernel and stride k) over `glyphs` [N, rows, columns]."""
    if glyphs.device.type != "cpu" or torch.compiler.is_exporting():
        return layer(embedding(glyphs.long()).movedim(-1, 1))
    assert layer.bias is not None
    side = layer.kernel_size[0]
    present, ranks = _rank(glyphs.numpy(), len(embedding.weight))
    num, rows, columns = glyphs.shape
    patches = ranks.reshape(num, rows // side, side, columns // side, side)
    places = patches.transpose(2, 4, 0, 1, 3).reshape(side * side, -1)  # [k * k, N * rows / k * columns / k]
    table = _tap_table(embedding.weight, present, layer.weight, layer.bias)
    sums = sum_of_rows(list(places), table.unbind(1))
    return sums.unflatten(0, (num, rows // side, columns // side)).movedim(-1, 1)


def convolve_categories(categories: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[N, O, rows, columns], channels last in memory, in the autocast dtype or that of the parameters; on a CPU, with
    zero padding. `categories` [N, rows, columns] integers, `embedding` [V, E], `weight` [O, E, k, k] with odd k, `bias`
    [O]."""
    radius = weight.shape[-1] // 2
    present, ranks = _rank(categories.numpy(), len(embedding))
    padded = np.pad(ranks, ((0, 0), (radius, radius), (radius, radius)), constant_values=len(present))
    table = F.pad(_tap_table(embedding, present, weight, bias), (0, 0, 0, 0, 0, 1))  # the last row: outside the map
    return _SumOfTaps.apply(table, padded).unflatten(0, categories.shape).movedim(-1, 1)


def _rank(maps: np.ndarray, num_categories: int) -> tuple[np.ndarray, np.ndarray]:
    """The categories that occur, and `maps` with each category replaced by its rank among them (i32)."""
    present = np.flatnonzero(np.bincount(maps.ravel(), minlength=num_categories))
    ranks = np.zeros(num_categories, np.int32)
    ranks[present] = np.arange(len(present))
    return present, ranks[maps]


def _tap_table(embedding: Tensor, present: np.ndarray, weight: Tensor, bias: Tensor) -> Tensor:
    """[categories, k * k, O]: the contribution of each category `present` to an output, per tap of the kernel, in the
    autocast dtype or that of the parameters. The bias is in the middle tap, which every output uses once."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    with torch.autocast("cpu", enabled=False):
        taps = weight.permute(1, 2, 3, 0).flatten(1).to(embedding.dtype)  # [E, k * k * O]
        table = (embedding[torch.from_numpy(present)] @ taps).unflatten(1, (-1, len(bias)))
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
        gradients = d_outputs.new_zeros(*padded.shape, d_outputs.shape[-1])  # zero outside the map
        gradients[inner] = d_outputs.view_as(gradients[inner])
        # The cells of each category in turn, and for each tap the outputs that used them.
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
