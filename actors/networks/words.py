"""Reads texts by their words, each hashed to a learnt vector: short texts that share no word share nothing, and one other word is enough to
tell two of them apart from the first weights on, where bytes through a linear layer would have to learn each word at each place anew.

Invariant: case, spacing, punctuation and the digits of a number change nothing; everything is integer arithmetic on arrays of fixed shapes,
so it is the same on every device, and may be recorded as a CUDA graph.
"""

import torch
from torch import Tensor, nn

from actors.networks.repeated_rows import SIDE_FEATURES, two_layers

NUM_BUCKETS = 8192
"""Vectors for words and for pairs of neighbours; NetHack's messages have some 3,000 words."""
WIDTH = 32
MAX_WORDS = 48
"""Words of a text that are read; NetHack's longest messages have about 40."""
_MULTIPLIER = 0x5851F42D4C957F2D  # of Knuth's MMIX generator: odd, so that it has an inverse modulo 2^64
_MIX = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio, as a signed number


class WordEncoder(nn.Module):
    """The sum of the vectors of words and of pairs of neighbouring words over the root of their number, and their greatest entries, through
    two layers."""

    _codes: Tensor
    _powers: Tensor
    _inverses: Tensor

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_BUCKETS, WIDTH, padding_idx=0)
        self.layers = two_layers(2 * WIDTH)
        self.num_features = SIDE_FEATURES
        self.register_buffer("_codes", _letter_codes(), persistent=False)
        self.register_buffer("_powers", _powers(_MULTIPLIER, num_bytes), persistent=False)
        self.register_buffer("_inverses", _powers(pow(_MULTIPLIER, -1, 2**64), num_bytes), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        """[N, bytes] u8 -> [N, 128]."""
        words = self.words(text)
        pairs = torch.where(
            (words[:, :-1] != 0) & (words[:, 1:] != 0), _bucket(words[:, :-1] * NUM_BUCKETS + words[:, 1:]), 0
        )
        read = torch.cat([words, pairs], 1)
        vectors, there = self.embedding(read), (read != 0).unsqueeze(-1)
        sums = vectors.sum(1) / there.sum(1).clamp(min=1).sqrt()  # of unit variance at first, however long the text
        greatest = vectors.masked_fill(~there, -torch.inf).amax(1)
        return self.layers(torch.cat([sums, torch.where(there.any(1), greatest, 0)], -1))

    def words(self, text: Tensor) -> Tensor:
        """[N, bytes] u8 -> [N, MAX_WORDS] i64: each word's bucket, in their order; 0 after the last."""
        codes = self._codes[text.int()]
        is_letter = codes != 0
        places = torch.arange(text.shape[1], device=text.device)
        begins = torch.where(is_letter, -1, places).cummax(1).values + 1  # where the word that a byte belongs to begins
        sums = nn.functional.pad(
            (codes * self._powers).cumsum(1), (1, 0)
        )  # of the polynomial whose values the hashes are, modulo 2^64
        hashes = (sums[:, 1:] - sums.gather(1, begins.clamp(max=text.shape[1]))) * self._inverses[
            begins.clamp(max=text.shape[1] - 1)
        ]
        ends = is_letter & ~nn.functional.pad(is_letter[:, 1:], (0, 1))
        order = ends.cumsum(1) - 1
        found = text.new_zeros(len(text), MAX_WORDS + 1, dtype=torch.long)
        found.scatter_(
            1, torch.where(ends, order.clamp(max=MAX_WORDS), MAX_WORDS), torch.where(ends, _bucket(hashes), 0)
        )
        return found[:, :MAX_WORDS]


def _bucket(hashes: Tensor) -> Tensor:
    """Any i64 -> [1, NUM_BUCKETS)."""
    hashes = (hashes ^ (hashes >> 32)) * _MIX
    return ((hashes >> 33) & 0x7FFFFFFF) % (NUM_BUCKETS - 1) + 1


def _letter_codes() -> Tensor:
    """[256] i64: what a byte counts as within a word; 0 separates words."""
    codes = torch.zeros(256, dtype=torch.long)
    for first in (ord("a"), ord("A")):
        codes[first : first + 26] = torch.arange(1, 27)
    codes[ord("0") : ord("9") + 1] = 27
    codes[128:] = torch.arange(28, 156)
    return codes


def _powers(base: int, num: int) -> Tensor:
    """[num] i64: base^0, base^1 ... modulo 2^64."""
    powers = [pow(base, exponent, 2**64) for exponent in range(num)]
    return torch.tensor([power - 2**64 if power >= 2**63 else power for power in powers])
