"""What NetHack's encoders have in common: parts encoded side by side, most of whose rows repeat themselves.

Invariant: features are those of every row encoded by itself, up to rounding, whatever is shared or remembered.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from actors.distinct_rows import RepeatedRows, encode_all, encode_distinct
from actors.encoding_cache import EncodingCache

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
        return torch.cat([caches[name](rows, encode) if name in caches else encode(rows) for name, (rows, encode) in split], -1)

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
