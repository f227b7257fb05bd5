"""What to ask next, and how much: the priority of every caption under `annotator.policy`, and the budget of
`annotator.max_labels` in all and `annotator.max_labels_per_s`.

Invariant: priorities are a function of the caption book's columns, so a resumed run asks in the same order. What is
reserved of the budget is either spent or refunded, and the total spent never exceeds the limit. After a resume it
counts from the checkpoint: later answers come from the judgement store, which costs nothing.
"""

import threading
from collections.abc import Callable

import numpy as np

from llm_server.token_bucket import TokenBucket

POLICIES = ("recency_frequency", "frequency", "uncertainty")


def log_priorities(
    policy: str, counts: np.ndarray, last_seen: np.ndarray, margins: np.ndarray, half_life_env_steps: int
) -> np.ndarray:
    """[N] f64, log2 of the priority of captions seen `counts` times, last at `last_seen` (environment steps).

    `recency_frequency`: count 0.5^((now - last_seen) / half_life); its logarithm has the same order without `now`:
    log2(count) + last_seen / half_life. `frequency`: count. `uncertainty`: count 4 s(m) (1 - s(m)), s the logistic
    function and m the reward model's margin (NaN, unknown: maximally uncertain). Raises ValueError for another policy.
    """
    # A text sent again to a new book comes without a count, and counts as half an occurrence.
    frequency = np.log2(np.maximum(counts, 0.5))
    if policy == "recency_frequency":
        return frequency + last_seen / half_life_env_steps
    if policy == "frequency":
        return frequency
    if policy == "uncertainty":
        m = np.abs(np.nan_to_num(margins, nan=0.0))  # log2(4 s (1 - s)) = 2 - (|m| + 2 log(1 + exp(-|m|))) / log 2
        return frequency + 2.0 - (m + 2.0 * np.log1p(np.exp(-m))) / np.log(2.0)
    raise ValueError(f"annotator.policy is one of {', '.join(POLICIES)}, got {policy!r}")


class AskingBudget:
    """Counts answers; thread-safe."""

    def __init__(self, max_labels: int, max_labels_per_s: float, clock: Callable[[], float]) -> None:
        self._max_labels, self._rate_limit = max_labels, TokenBucket(max_labels_per_s, clock)
        self._lock = threading.Lock()
        self._spent = self._reserved = 0

    def reserve(self, num: int) -> int:
        """How many of `num` may be asked now; they count until `spend` or `refund`."""
        with self._lock:
            if self._max_labels:
                num = min(num, self._max_labels - self._spent - self._reserved)
            num = max(0, self._rate_limit.take(num))
            self._reserved += num
            return num

    def spend(self, num: int) -> None:
        """Count `num` of the reserved items as answered."""
        with self._lock:
            self._reserved -= num
            self._spent += num

    def refund(self, num: int) -> None:
        """Return `num` of the reserved items that were not asked, or not answered."""
        with self._lock:
            self._reserved -= num
            self._rate_limit.put_back(num)

    def restore(self, spent: int) -> None:
        """Start with `spent` answers, after a resume."""
        with self._lock:
            self._spent = spent
