"""What NetHack's two encoders have in common: three entries encoded side by side, most of whose rows repeat themselves.

Invariant: features are those of every row encoded by itself, up to rounding, whatever is shared or remembered.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from actors.distinct_rows import RepeatedRows, encode_all, encode_distinct
from actors.encoding_cache import EncodingCache


class RepeatingEncoder(nn.Module):
    """Encodes a window of the map, blstats and message, each distinct row once where it was made with `reuses`."""

    entries: tuple[str, str, str]
    """The names of window, blstats and message."""
    num_features: int

    def __init__(self, *, reuses: bool) -> None:
        super().__init__()
        self._reuses = reuses

    @property
    def repeating(self) -> tuple[str, str]:
        """Entries that seldom change from one step to the next."""
        window, _, message = self.entries
        return window, message

    def forward(self, obs: Mapping[str, Tensor], caches: Mapping[str, EncodingCache] | None = None) -> Tensor:
        """Features [N, num_features] f32 or the autocast dtype; `caches` (of `repeating`) remember from one call to the next."""
        if not caches:
            return torch.cat([part.rows() for part in self.parts(obs)], -1)
        windows, blstats, messages = (obs[name] for name in self.entries)
        of_window, of_message = (caches[name] for name in self.repeating)
        seen, text = of_window(windows.flatten(1), self._convolve), of_message(messages, self._read)
        return torch.cat([seen, self._measure(blstats), text], -1)

    def parts(self, obs: Mapping[str, Tensor]) -> list[RepeatedRows]:
        """The features of `forward`, side by side, before what repeats itself is repeated."""
        windows, blstats, messages = (obs[name] for name in self.entries)
        encode = encode_distinct if self._reuses else encode_all
        return [encode(windows.flatten(1), self._convolve), encode(blstats, self._measure), encode(messages, self._read)]

    def _convolve(self, windows: Tensor) -> Tensor:
        """[N, cells] -> [N, features]."""
        raise NotImplementedError

    def _measure(self, blstats: Tensor) -> Tensor:
        """[N, 27] -> [N, features]."""
        raise NotImplementedError

    def _read(self, message: Tensor) -> Tensor:
        """[N, bytes] -> [N, features]."""
        raise NotImplementedError
