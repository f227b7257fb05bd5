"""A run's metrics as gauges of `ray.util.metrics`, at the metrics endpoints of nodes that Ray gives to Prometheus.

Invariant: while it is open every catalogue metric is at the endpoint; an undefined one as 0 with the label
`undefined="yes"`, because Ray drops NaN. Ray exports a gauge only in the report interval in which it was set and drops
it two intervals later, so all are set repeatedly.
"""

import threading
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from cluster.metrics import CATALOGUE, RAY_PREFIX, UNDEFINED

REPEAT_S = 1.0
"""Well below Ray's report interval (10 s); setting all takes about 0.1 ms."""


class RayGauges:
    """Gauges tagged with the run, for counters too: Ray's own counters start at 0 in every process and can only be
    added to, so a resumed run could not restore one. `close` ends the thread that sets them repeatedly."""

    def __init__(self, run_name: str) -> None:
        self._gauges = {}
        for metric in CATALOGUE:
            description = f"{metric.meaning} [{metric.unit}]"
            gauge = Gauge(RAY_PREFIX + metric.name, description=description, tag_keys=("run", UNDEFINED))
            self._gauges[metric.name] = gauge.set_default_tags({"run": run_name})
        self._line: Mapping[str, Any] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="gauges", daemon=True)
        self._thread.start()

    def show(self, line: Mapping[str, Any]) -> None:
        """Set the gauges to this metric line's values, within REPEAT_S; None is undefined."""
        self._line = line

    def close(self) -> None:
        """End the thread; Ray then drops the values."""
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
