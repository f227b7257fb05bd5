"""A run's metrics as gauges of `ray.util.metrics`, on every node's metrics endpoint that Ray tells Prometheus of.

Invariant: while it is open every catalogue metric is at the endpoint; one that is undefined as 0 with the label `undefined="yes"`,
since NaN does not get through Ray. Ray passes a gauge on only in the report interval in which it was set and forgets it two intervals
later, so that one set once, or never, is not there: all are set again and again.
"""

import threading
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from cluster.metrics import CATALOGUE, RAY_PREFIX, UNDEFINED

REPEAT_S = 1.0
"""Well below Ray's report interval (10 s); setting all takes about 0.1 ms."""


class RayGauges:
    """Gauges tagged with the run, counters too: Ray's own counters begin at 0 in every process and can only be added to, so that a
    resumed run could not set one to where it was. `close` ends the thread that repeats them."""

    def __init__(self, run_name: str) -> None:
        self._gauges = {}
        for metric in CATALOGUE:
            gauge = Gauge(
                RAY_PREFIX + metric.name, description=f"{metric.meaning} [{metric.unit}]", tag_keys=("run", UNDEFINED)
            )
            self._gauges[metric.name] = gauge.set_default_tags({"run": run_name})
        self._line: Mapping[str, Any] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="gauges", daemon=True)
        self._thread.start()

    def show(self, line: Mapping[str, Any]) -> None:
        """From now on, at the latest in REPEAT_S, the gauges are this metric line's values; None is undefined."""
        self._line = line

    def close(self) -> None:
        """Stop; Ray forgets the values by itself."""
        self._closed.set()
        self._thread.join()

    def _repeat(self) -> None:
        while True:
            line = self._line
            for name, gauge in self._gauges.items():
                value = line.get(name)
                gauge.set(0 if value is None else value, tags={UNDEFINED: "yes" if value is None else ""})
            if self._closed.wait(REPEAT_S):
                return
