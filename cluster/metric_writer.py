"""Writes metric lines to metrics.jsonl, TensorBoard and, inside a Ray process, Ray's metrics endpoint.

Invariant: every line holds every catalogue name (null where undefined) and no other; a line is on disk when `write` returns.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.metrics import CATALOGUE, NAMES


class MetricWriter:
    """One run's metric outputs; `close` flushes them."""

    def __init__(self, directory: Path, *, tensorboard: bool, run_name: str, env_steps: int = 0) -> None:
        """`env_steps` is where the run goes on from: TensorBoard drops what was written beyond it."""
        self._file = (directory / "metrics.jsonl").open("a", buffering=1)
        self._tensorboard: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(directory / "tensorboard"), purge_step=env_steps + 1)
        self._gauges = _ray_gauges(run_name)

    def write(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write one line and return it as written; raises KeyError for a name that the catalogue lacks."""
        unknown = values.keys() - NAMES
        if unknown:
            raise KeyError(f"metrics {sorted(unknown)} are not in cluster.metrics.CATALOGUE; add them there")
        line = {metric.name: _finite(values.get(metric.name)) for metric in CATALOGUE}
        self._file.write(json.dumps(line) + "\n")
        if self._tensorboard is not None:
            for name, value in line.items():
                if value is not None:
                    self._tensorboard.add_scalar(name, value, line["env_steps"])
        if self._gauges is not None:
            self._gauges.show(line)
        return line

    def close(self) -> None:
        """Flush and close the files, and leave Ray's endpoint."""
        if self._gauges is not None:
            self._gauges.close()
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ray_gauges(run_name: str) -> Any:
    """The run's gauges inside a Ray process; None elsewhere."""
    if "ray" not in sys.modules:  # `inline` does without it, its import included
        return None
    import ray

    if not ray.is_initialized():
        return None
    from cluster.ray_gauges import RayGauges

    return RayGauges(run_name)
