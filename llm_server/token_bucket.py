"""`TokenBucket`: a limit on the rate of requests or labels.

Invariant: `rate` per second on average, with bursts of one second's worth, and of 1 at least.
"""

from collections.abc import Callable


class TokenBucket:
    """Unlimited where `rate` (1/s) is 0; not thread-safe. `clock` gives seconds."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate, self._clock = rate, clock
        self._tokens, self._filled_at = max(1.0, rate), clock()

    def take(self, num: int) -> int:
        """How many of `num` are allowed now; they are taken out."""
        if not self._rate:
            return num
        now = self._clock()
        self._tokens = min(max(1.0, self._rate), self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        allowed = max(0, min(num, int(self._tokens)))
        self._tokens -= allowed
        return allowed

    def put_back(self, num: int) -> None:
        """Return what was taken and not used."""
        self._tokens += num
