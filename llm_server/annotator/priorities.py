"""What to ask next, and how much may be asked: the priority of every caption under `annotator.policy`, and the budget of
`annotator.max_labels` in all and `annotator.max_labels_per_s`.

Invariant: priorities are a function of the caption book's columns, so a resumed run asks in the same order. What is reserved of the
budget is either spent or given back, and the total spent never exceeds the limit. After a resume it counts from the checkpoint: what was
answered since is asked of the judgement store again, which costs nothing.
"""

import threading
from collections.abc import Callable

import numpy as np

POLICIES = ("recency_frequency", "frequency", "uncertainty")


def log_priorities(
    policy: str, counts: np.ndarray, last_seen: np.ndarray, margins: np.ndarray, half_life_env_steps: int
) -> np.ndarray:
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


class AskingBudget:
    """Counts answers; thread-safe. Rates allow a burst of one second's worth."""

    def __init__(self, max_labels: int, max_labels_per_s: float, clock: Callable[[], float]) -> None:
        self._max_labels, self._rate, self._clock = max_labels, max_labels_per_s, clock
        self._lock = threading.Lock()
        self._spent = self._reserved = 0
        self._tokens, self._filled_at = max(1.0, max_labels_per_s), clock()

    def reserve(self, num: int) -> int:
        """How many of `num` may be asked now; they count until `spend` or `refund`."""
        with self._lock:
            if self._max_labels:
                num = min(num, self._max_labels - self._spent - self._reserved)
            if self._rate:
                now = self._clock()
                self._tokens = min(max(1.0, self._rate), self._tokens + (now - self._filled_at) * self._rate)
                self._filled_at = now
                num = min(num, int(self._tokens))
                self._tokens -= max(num, 0)
            num = max(num, 0)
            self._reserved += num
            return num

    def spend(self, num: int) -> None:
        """`num` of what was reserved was answered."""
        with self._lock:
            self._reserved -= num
            self._spent += num

    def refund(self, num: int) -> None:
        """`num` of what was reserved was not asked, or not answered."""
        with self._lock:
            self._reserved -= num
            self._tokens += num if self._rate else 0.0

    def restore(self, spent: int) -> None:
        """Begin with so many spent."""
        with self._lock:
            self._spent = spent
