"""The main job in small: Ray on this machine, real NetHack, SmolLM2 behind gRPC; what dies comes back, and a closed
terminal leaves nothing."""

import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.run.temporary import temporary_directory
from tests.run_processes import actors_of, end_processes, lines, processes_of, service_of, start_run, wait_until


@pytest.mark.parametrize("annotator_dies", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_main_job_survives_what_dies_and_a_closed_terminal_leaves_nothing(
    annotator_dies: bool, tmp_path: Path
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "output.txt"
    settings = [
        "actors.envs_per_worker=8",
        "logging.interval_env_steps=1000",
        f"service.store={tmp_path / 'judgements.sqlite'}",
    ]
    settings += [
        "policy.hidden_size=32",
        "policy.core_size=32",
        "learner.epochs=1",
        "learner.minibatches=1",
    ]  # the machine is for the judge
    process = start_run(run_dir, log, "total_env_steps=1000000000", *settings)
    try:
        wait_until(
            lambda: any(line["annotator_up"] == 1 and line["annotations_total"] >= 32 for line in lines(run_dir)),
            process,
            log,
        )
        service = service_of(run_dir)
        assert service is not None
        assert service.nice() > actors_of(run_dir, "WorkerActor")[0].nice()
        killed_at = lines(run_dir)[-1]
        service.kill()
        wait_until(
            lambda: any(x["annotator_up"] == 0 and x["env_steps"] > killed_at["env_steps"] for x in lines(run_dir)),
            process,
            log,
        )
        recovered = wait_until(
            lambda: [x for x in lines(run_dir) if (x["service_restarts"] or 0) >= 1 and x["annotator_up"] == 1],
            process,
            log,
        )[0]
        wait_until(lambda: lines(run_dir)[-1]["annotations_total"] > recovered["annotations_total"], process, log)
        actors_of(run_dir, "WorkerActor")[0].kill()
        replaced = wait_until(lambda: [x for x in lines(run_dir) if x["worker_restarts"] == 1], process, log)[0]

        def wait_for_annotator(is_up: int, since: dict[str, Any]) -> None:
            """In a line after `since`."""
            later = lambda x: x["env_steps"] > since["env_steps"] and x["annotator_up"] == is_up  # noqa: E731
            wait_until(lambda: any(map(later, lines(run_dir))), process, log)

        if annotator_dies:
            actors_of(run_dir, "AnnotatorActor")[0].kill()
            wait_for_annotator(0, replaced)
            wait_for_annotator(1, lines(run_dir)[-1])
        assert all(a["env_steps"] < b["env_steps"] for a, b in zip(lines(run_dir), lines(run_dir)[1:], strict=False))
        os.killpg(process.pid, signal.SIGHUP)  # all that a terminal's end reaches, Ray's processes among them
        os.killpg(process.pid, signal.SIGHUP)
        process.wait(20)
        alive = psutil.wait_procs(processes_of(run_dir), timeout=10)[1]
        assert not alive
    finally:
        end_processes(run_dir)
        process.wait(10)
    assert process.returncode == 0, log.read_text()[-4000:]
    assert not temporary_directory(str(run_dir)).exists()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["intrinsic_unknown_fraction"] < 0.2
    with sqlite3.connect(run_dir / "captions.sqlite") as archive:
        (judged,) = archive.execute("SELECT count(*) FROM captions WHERE probability IS NOT NULL").fetchone()
        statuses = {status for (status,) in archive.execute("SELECT DISTINCT status FROM captions")}
    archive.close()
    assert judged >= summary["annotations_total"] - summary["annotations_unparsed"], "answers that came are kept"
    assert "ASKED" not in statuses, "what was asked when the service died is pending again"
