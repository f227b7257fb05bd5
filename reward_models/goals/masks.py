"""Masks of goals: a set of goals as 4 words of 64 bits, goal g being bit g % 64 of word g // 64.

Invariant: the last axis of an array of masks has `WORDS` words; a mask of zeros is no goal.
"""

from collections.abc import Sequence

import numpy as np

from configs.goal_schema import MAX_GOALS

WORDS = MAX_GOALS // 64


def masks_of(goals: np.ndarray) -> np.ndarray:
    """[..., 4] u64: the mask of one goal each, of `goals` [...] int, -1 for none."""
    masks = np.zeros((*goals.shape, WORDS), np.uint64)
    places = *np.nonzero(goals >= 0), goals[goals >= 0] // 64
    masks[places] = np.uint64(1) << (goals[goals >= 0] % 64).astype(np.uint64)
    return masks


def numbers_of(masks: np.ndarray) -> list[int]:
    """Each of `masks` [N, 4] u64 as one int, whose bit g is goal g."""
    octets, width = masks.astype("<u8", copy=False).tobytes(), 8 * WORDS
    return [int.from_bytes(octets[i : i + width], "little") for i in range(0, len(octets), width)]


def masks_from(numbers: Sequence[int]) -> np.ndarray:
    """[N, 4] u64 of what `numbers_of` returns."""
    octets = b"".join(number.to_bytes(8 * WORDS, "little") for number in numbers)
    return np.frombuffer(octets, "<u8").reshape(-1, WORDS).astype(np.uint64)
