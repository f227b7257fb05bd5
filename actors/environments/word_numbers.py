"""The words of a text as numbers: each word hashed to one of the embeddings that a network learns.

Invariant: a word has the same number in every process, and the number that `actors.networks.words` computes from its
bytes; case, spacing, punctuation and the digits of a number change nothing.
"""

import functools

import numpy as np

NUM_BUCKETS = 8192
"""Embeddings of words and of pairs of neighbouring words; NetHack's messages have some 3,000 words."""
MAX_WORDS = 48
"""Words read of a text; NetHack's longest messages have about 40."""
MULTIPLIER = 0x5851F42D4C957F2D  # of Knuth's MMIX generator: odd, so that it has an inverse modulo 2^64
MIX = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio, as a signed number
MAX_TEXTS = 4096
"""Texts whose numbers are remembered."""


@functools.lru_cache(MAX_TEXTS)
def word_numbers(text: bytes) -> np.ndarray:
    """[MAX_WORDS] i32 of a text in UTF-8: each word's number, from 1 on, in order; 0 after the last. Read-only."""
    words = bytes(byte if LETTER_CODES[byte] else 0x20 for byte in text).split()
    numbers = np.zeros(MAX_WORDS, np.int32)
    for place, word in enumerate(words[:MAX_WORDS]):
        numbers[place] = _bucket(sum(LETTER_CODES[byte] * MULTIPLIER**i for i, byte in enumerate(word)))
    numbers.flags.writeable = False
    return numbers


def _letter_code(byte: int) -> int:
    """A byte's code within a word; 0 separates words."""
    if chr(byte).isascii():
        return 27 if chr(byte).isdigit() else ord(chr(byte).lower()) - ord("a") + 1 if chr(byte).isalpha() else 0
    return 28 + byte - 128


LETTER_CODES = tuple(map(_letter_code, range(256)))


def _bucket(hashed: int) -> int:
    """Any integer -> [1, NUM_BUCKETS), in the arithmetic of signed 64-bit numbers."""
    hashed = _signed(hashed)
    hashed = _signed((hashed ^ (hashed >> 32)) * MIX)
    return ((hashed >> 33) & 0x7FFFFFFF) % (NUM_BUCKETS - 1) + 1


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63
