"""The wait between retries of services, workers and requests.

Invariant: a pure function; imports nothing.
"""


def backoff_s(failures: int, first_s: float, longest_s: float) -> float:
    """Seconds to wait after `failures` in a row: 0 after none, then doubling from `first_s` up to `longest_s`."""
    return min(first_s * 2.0 ** min(failures - 1, 32), longest_s) if failures > 0 else 0.0
