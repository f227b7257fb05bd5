"""A run on Ray that waits for its first reward table trains no step without one, although captions come with rollouts alone."""

import json
from pathlib import Path

from tests.run_processes import processes_of, start_run


def test_no_step_is_trained_before_the_first_table_and_the_summary_says_so(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "output.txt"
    settings = [
        "env.id=tests.toy_environments:Corridor-v0",
        "cluster.mode=local",
        "cluster.dashboard=false",
        "reward_model.publish_interval_s=0.1",
    ]
    settings += ["cluster.object_store_bytes=200000000", "service.script_delay_s=0.05", "total_env_steps=2560", "policy.hidden_size=8"]
    settings += [
        "annotator.wait_for_first_table_s=100",
        "logging.console=plain",
        "logging.tensorboard=false",
        "learner.rollouts_per_batch=2",
    ]
    process = start_run(run_dir, log, *settings, preset="debug")
    try:
        process.wait(240)
    finally:
        for leftover in processes_of(run_dir):
            leftover.kill()
    assert process.returncode == 0, log.read_text()[-4000:]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps_without_table_fraction"] == 0
    assert (summary["finished"], summary["rollouts_dropped_stale"]) == (True, 0)
    assert "waiting for the first reward table (annotator.wait_for_first_table_s = 100 s at most)" in (run_dir / "log.txt").read_text()
    assert "trained before the first reward table came: 0.0% of steps" in log.read_text()
