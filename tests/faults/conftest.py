"""What tests of faults measure, kept for docs/reliability.md where `make faults` asks for it; and a service that
misbehaves."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from llm_server.rubrics.loading import load_rubric
from tests.faults.annotating import Annotating
from tests.faults.misbehaving import SpoiltService


@pytest.fixture
def record_recovery(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record_recovery(fault, holds, recovery_s)`: one row of the table; `recovery_s` None where nothing has to
    recover."""

    def record(fault: str, holds: str, recovery_s: float | None) -> None:
        path = os.environ.get("DELPHI_FAULTS_REPORT")
        if not path:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        row = {"fault": fault, "holds": holds, "recovery_s": recovery_s, "test": request.node.nodeid}
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")

    return record


@pytest.fixture
def annotate(tmp_path: Path) -> Iterator[Callable[..., Annotating]]:
    """Makes annotation pipelines with settings of their own, whose services end with the test."""
    made: list[Annotating] = []

    def annotate(*overrides: str) -> Annotating:
        made.append(Annotating(tmp_path, *overrides))
        return made[-1]

    yield annotate
    for each in made:
        pid = each.pid
        each.close()
        assert pid is None or not psutil.pid_exists(pid)


@pytest.fixture
def service() -> Iterator[SpoiltService]:
    """One that judges soundly until it is told otherwise."""
    made = SpoiltService(load_rubric("nethack_progress"))
    yield made
    made.close()
