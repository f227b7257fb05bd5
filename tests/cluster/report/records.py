"""Records of runs for tests of reports, without a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.report.captions import Captions
from cluster.report.checkpoints import Learnt
from cluster.report.reading import RunRecord
from cluster.run.directory import RunDirectory
from configs.schema import RunConfig


def record(lines: list[dict[str, Any]] | None = None, **changes: Any) -> RunRecord:
    run = RunRecord(
        directory=RunDirectory(Path("run")),
        config=RunConfig(),
        starts=[],
        summary={},
        lines=lines or [],
        audit={},
        learnt=Learnt(),
        paid=[],
        missing=[],
    )
    return replace(run, **changes)


def series(**metrics: list[float]) -> list[dict[str, Any]]:
    columns = {"env_steps": list(range(1, 1 + len(next(iter(metrics.values()))))), **metrics}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def captions(*paid: float) -> Captions:
    return Captions(
        ids=np.arange(len(paid), dtype=np.uint64),
        texts=[f"caption {i}" for i in range(len(paid))],
        columns={"paid": np.array(paid, np.float32)},
        step_unit=1,
    )
