"""Workers come with nodes and go with them, without a crash being counted; with the head node the run ends, and resumes
elsewhere."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.small_cluster import SmallCluster, small_cluster
from tests.faults.toy_runs import is_alive, seconds_until, toy_run
from tests.run_processes import wait_until

pytestmark = pytest.mark.faults


def on(cluster: SmallCluster) -> list[str]:
    """Settings of a run there."""
    return ["cluster.mode=connect", f"cluster.address={cluster.address}", "cluster.more_nodes=expected"]


@pytest.mark.slow
def test_workers_join_with_a_node_and_a_lost_nodes_are_replaced_elsewhere(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    budget = ["cluster.max_worker_restarts=0", "cluster.min_workers=1", "total_env_steps=1000000000"]
    budget += ["cluster.learner_cpus=2"]  # which no node but the head has
    with (
        small_cluster(2) as cluster,  # room for the learner alone
        toy_run(tmp_path, *on(cluster), *budget, env=cluster.environment) as run,
    ):
        wait_until(lambda: "waiting for 1 x worker" in run.output(), run.process, run.log)
        assert run.stop() == 0, "stopped on request, though it had not begun"
        first = cluster.add_node()
        run.start_again()

        def wait_for(workers: int) -> float:
            began = time.monotonic()
            wait_until(lambda: run.last_line().get("workers_running") == workers, run.process, run.log)
            return time.monotonic() - began

        wait_for(1)
        cluster.add_node()
        joined_s = wait_for(2)
        steps = run.last_line()["env_steps"]
        cluster.kill_node(first)
        lost_s = wait_for(1)
        wait_until(lambda: run.last_line()["env_steps"] > steps + 2000, run.process, run.log)
        cluster.add_node()
        replaced_s = wait_for(2)
        assert run.stop() == 0, run.output()
        run.assert_steps_are_exact()
        assert "its node" in run.output()
    record_recovery("a node joins", "a worker that had found no room is started there", round(joined_s, 1))
    holds = "the run goes on with the other workers, steps exact; no crash is counted"
    record_recovery("kill -9 of a whole node", holds, round(lost_s, 1))
    record_recovery("a node comes for a lost one", "the lost worker is replaced on it", round(replaced_s, 1))


@pytest.mark.slow
def test_a_killed_head_ends_the_run_and_the_same_settings_resume_it_on_a_new_cluster(
    tmp_path: Path, record_recovery: Callable[..., None]
) -> None:
    settings = ["total_env_steps=1000000000", "checkpoint.interval_env_steps=1000"]
    with small_cluster(3) as cluster, toy_run(tmp_path, *on(cluster), *settings, env=cluster.environment) as run:
        wait_until(lambda: (run.run_dir / "checkpoints" / "latest").exists(), run.process, run.log)
        actors = cluster.actors()
        assert len(actors) == 3
        cluster.kill_node(0)
        assert run.process.wait(120) != 0
        seconds_until(lambda: not any(map(is_alive, actors)), 60)
        with small_cluster(3) as successor:
            run.settings = (*on(successor), *settings)
            began = time.monotonic()
            run.start_again()
            wait_until(lambda: run.last_line().get("run_epoch") == 2, run.process, run.log)
            recovery_s = time.monotonic() - began
            assert run.stop() == 0, run.output()
        run.assert_steps_are_exact()
    holds = "the command fails, its actors die; given again on a new cluster it resumes"
    record_recovery("kill -9 of the head node", holds, round(recovery_s, 1))
