"""Encodes texts word by word, each word hashed to a learnt embedding: short texts without common words share no
features, and one different word distinguishes two texts from the initial weights on, where a linear layer over bytes
would have to learn each word at each position anew.

Invariant: case, spacing, punctuation and the digits of a number change nothing; everything is integer arithmetic on
arrays of fixed shapes, so it is the same on every device and can be recorded as a CUDA graph.
"""

import torch
from torch import Tensor, nn

from actors.environments.word_numbers import LETTER_CODES, MAX_WORDS, MIX, MULTIPLIER, NUM_BUCKETS
from actors.networks.repeated_rows import SIDE_FEATURES, two_layers

WIDTH = 32


class WordEncoder(nn.Module):
    """Two layers over the sum of the embeddings of words and of pairs of neighbouring words, divided by the square root
    of their number, and over their maximum."""

    def __init__(self, num_bytes: int | None) -> None:
        """`num_bytes` of a text; None for one that comes as the numbers of its words (`word_numbers`)."""
        super().__init__()
        self.embedding = nn.Embedding(NUM_BUCKETS, WIDTH, padding_idx=0)
        self.layers = two_layers(2 * WIDTH)
        self.num_features = SIDE_FEATURES
        self._is_numbered = num_bytes is None
        self._codes = nn.Buffer(torch.tensor(LETTER_CODES), persistent=False)
        self._powers = nn.Buffer(_powers(MULTIPLIER, num_bytes or 0), persistent=False)
        self._inverses = nn.Buffer(_powers(pow(MULTIPLIER, -1, 2**64), num_bytes or 0), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        """[N, bytes] u8, or [N, words] of numbers, -> [N, 128]."""
        words = text.long() if self._is_numbered else self.words(text)
        first, second = words[:, :-1], words[:, 1:]
        pairs = torch.where((first != 0) & (second != 0), _bucket(first * NUM_BUCKETS + second), 0)
        read = torch.cat([words, pairs], 1)
        vectors, is_word = self.embedding(read), (read != 0).unsqueeze(-1)
        sums = vectors.sum(1) / is_word.sum(1).clamp(min=1).sqrt()  # initially of unit variance for any length
        greatest = vectors.masked_fill(~is_word, -torch.inf).amax(1)
        return self.layers(torch.cat([sums, torch.where(is_word.any(1), greatest, 0)], -1))

    def words(self, text: Tensor) -> Tensor:
        """[N, bytes] u8 -> [N, MAX_WORDS] i64: each word's bucket, in order; 0 after the last."""
        codes = self._codes[text.int()]
        is_letter = codes != 0
        places = torch.arange(text.shape[1], device=text.device)
        begins = torch.where(is_letter, -1, places).cummax(1).values + 1  # start of the word that a byte belongs to
        # A word's hash is a polynomial of its codes, modulo 2^64, from differences of prefix sums.
        sums = nn.functional.pad((codes * self._powers).cumsum(1), (1, 0))
        unshifts = self._inverses[begins.clamp(max=text.shape[1] - 1)]
        hashes = (sums[:, 1:] - sums.gather(1, begins.clamp(max=text.shape[1]))) * unshifts
        ends = is_letter & ~nn.functional.pad(is_letter[:, 1:], (0, 1))
        order = torch.where(ends, (ends.cumsum(1) - 1).clamp(max=MAX_WORDS), MAX_WORDS)
        # torch.export takes `len(text)` for a constant.
        words = text.new_zeros(text.shape[0], MAX_WORDS + 1, dtype=torch.long)
        return words.scatter_(1, order, torch.where(ends, _bucket(hashes), 0))[:, :MAX_WORDS]


def _bucket(hashes: Tensor) -> Tensor:
    """Any i64 -> [1, NUM_BUCKETS)."""
    hashes = (hashes ^ (hashes >> 32)) * MIX
    return ((hashes >> 33) & 0x7FFFFFFF) % (NUM_BUCKETS - 1) + 1


def _powers(base: int, num: int) -> Tensor:
    """[num] i64: base^0, base^1 ... modulo 2^64."""
    powers = [pow(base, exponent, 2**64) for exponent in range(num)]
    return torch.tensor([power - 2**64 if power >= 2**63 else power for power in powers])
