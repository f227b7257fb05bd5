"""Which pairs of captions are compared offline: drawn by how often both occur, each at most once.

Invariant: a function of its arguments; no caption is paired with itself, and no pair comes twice, whichever way round.
"""

from collections.abc import Iterable, Sequence

import numpy as np

DRAWS_AT_ONCE = 4096
LEAST_NEW_FRACTION = 0.05


def sample_pairs(counts: Sequence[int], num_pairs: int, seed: int, taken: Iterable[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """`num_pairs` new pairs of different places in `counts`, fewer only where no more exist; none is in `taken`, either way round.

    Both members are drawn with probability proportional to their counts, as in a sample of pairs of observations (Motif), without
    identical pairs and repetitions. Where a few captions are so frequent that hardly a draw is new, the weights are flattened by a
    square root, again and again if need be.
    """
    seen = {frozenset(pair) for pair in taken}
    wanted = min(num_pairs, len(counts) * (len(counts) - 1) // 2 - len(seen))
    weights = np.asarray(counts, np.float64)
    rng = np.random.default_rng(seed)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < wanted:
        drawn = rng.choice(len(counts), size=(DRAWS_AT_ONCE, 2), p=weights / weights.sum())
        before = len(chosen)
        for first, second in drawn.tolist():
            pair = frozenset((first, second))
            if len(pair) == 2 and pair not in seen:
                seen.add(pair)
                chosen.append((first, second))
        if len(chosen) - before < LEAST_NEW_FRACTION * DRAWS_AT_ONCE:
            weights = np.sqrt(weights)
    return chosen[:wanted]
