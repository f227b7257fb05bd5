"""Waiting for a condition that another thread or process brings about."""

import time
from collections.abc import Callable

WAIT_S = 120.0


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
