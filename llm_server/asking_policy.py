"""What to ask next: the priority of every caption under a policy, as a formula.

Invariant: a function of the caption book's columns, so a resumed run asks in the same order.
"""

import numpy as np

POLICIES = ("recency_frequency", "frequency", "uncertainty")


def log_priorities(policy: str, counts: np.ndarray, last_seen: np.ndarray, margins: np.ndarray, half_life_env_steps: int) -> np.ndarray:
    """[N] f64, log2 of the priority of captions seen `counts` times, last at `last_seen` (environment steps).

    `recency_frequency`: count 0.5^((now - last_seen) / half_life); its logarithm orders alike without `now`:
    log2(count) + last_seen / half_life. `frequency`: count. `uncertainty`: count 4 s(m) (1 - s(m)), s the logistic function and m
    the reward model's margin (NaN, not known: as uncertain as can be). Raises ValueError for another policy.
    """
    # A text sent again to a new book comes without a count: half an occurrence.
    frequency = np.log2(np.maximum(counts, 0.5))
    if policy == "recency_frequency":
        return frequency + last_seen / half_life_env_steps
    if policy == "frequency":
        return frequency
    if policy == "uncertainty":
        m = np.abs(np.nan_to_num(margins, nan=0.0))  # log2(4 s (1 - s)) = 2 - (|m| + 2 log(1 + exp(-|m|))) / log 2
        return frequency + 2.0 - (m + 2.0 * np.log1p(np.exp(-m))) / np.log(2.0)
    raise ValueError(f"annotator.policy is one of {', '.join(POLICIES)}, got {policy!r}")
