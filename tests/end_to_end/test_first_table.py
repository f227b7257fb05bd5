"""A run on Ray that waits for its first reward table trains no step without one, although captions come with rollouts
alone; SIGTERM ends it with a checkpoint."""

import json
import os
from pathlib import Path

from tests.run_processes import end_processes, lines, start_run, wait_until


def test_no_step_is_trained_before_the_first_table_and_sigterm_writes_a_checkpoint(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "output.txt"
    settings = [
        "env.id=tests.toy_environments:Corridor-v0",
        "cluster.mode=local",
        "cluster.dashboard=false",
        "cluster.object_store_bytes=200000000",
        "reward_model.publish_interval_s=0.1",
        "service.script_delay_s=0.05",
        "total_env_steps=1000000000",
        "policy.hidden_size=8",
        "policy.core=none",
        "learner.epochs=1",
        "learner.minibatches=1",
        "annotator.wait_for_first_table_s=100",
        "learner.rollouts_per_batch=2",
        "logging.interval_env_steps=500",
        "logging.console=plain",
        "logging.tensorboard=false",
    ]
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}  # of a cluster that a local run must not look for
    process = start_run(run_dir, log, *settings, preset="debug", env=environment)
    try:
        wait_until(lambda: lines(run_dir), process, log)
        process.terminate()
        process.wait(20)
    finally:
        end_processes(run_dir)
        process.wait(10)
    assert process.returncode == 0, log.read_text()[-4000:]
    assert list((run_dir / "checkpoints").glob("step_*"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps_without_table_fraction"] == 0
    assert (summary["finished"], summary["rollouts_dropped_stale"]) == (False, 0)
    assert (
        "waiting for the first reward table (annotator.wait_for_first_table_s = 100 s at most)"
        in (run_dir / "log.txt").read_text()
    )
    assert "trained before the first reward table came: 0.0% of steps" in log.read_text()
