"""Runs the trials of a sweep as Ray tasks, as many at a time as the machine or the cluster has room for.

Invariant: all state is in the run directories: whatever ends the driver, a task or a node, the same sweep goes on from
the runs' last checkpoints. A run is asked to stop, and so writes a checkpoint, when its task or the driver ends.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError, TaskCancelledError

from cluster.on_ray.driver import start_ray
from cluster.on_ray.learner import remote_cause
from cluster.sweep.sweep_file import PlannedRun, Sweep
from cluster.sweep.trial_process import POLL_S, STOP_BUDGET_S, run_trial, write_config
from configs.checks import ConfigError

MAX_RETRIES = 2
"""Of a run whose node or worker process was lost."""

OnEnd = Callable[[PlannedRun, str | None], None]


def run_all(
    runs: Sequence[PlannedRun],
    sweep: Sweep,
    *,
    address: str,
    jobs: int,
    sessions: Path | None,
    on_end: OnEnd,
    stop_requested: Callable[[], bool],
) -> None:
    """Run them all; `on_end` gets each run with what went wrong, None if nothing. `address` is a Ray cluster's; with
    `sessions` one is started here instead, with `jobs` CPUs (0: one per core) and its session in that folder. Raises
    ConfigError where no cluster is to be had."""
    with _cluster(address, jobs, sessions):
        trial = ray.remote(num_cpus=sweep.cpus, num_gpus=sweep.gpus, max_retries=MAX_RETRIES)(run_trial)
        waiting = {trial.remote(write_config(run.config), sweep.episodes, sweep.envs): run for run in runs}
        while waiting and not stop_requested():
            ended, _ = ray.wait(list(waiting), timeout=POLL_S)
            for task in ended:
                on_end(waiting.pop(task), _result(task))
        for task in waiting:
            ray.cancel(task)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting), timeout=STOP_BUDGET_S)


def _result(task: ray.ObjectRef) -> str | None:
    try:
        return ray.get(task)
    except TaskCancelledError:
        return "was stopped"
    except RayError as error:
        return remote_cause(error)


@contextlib.contextmanager
def _cluster(address: str, jobs: int, sessions: Path | None) -> Iterator[None]:
    """A Ray cluster: the one at `address`, or one of this process with its session in `sessions`."""
    try:
        if sessions:
            start_ray(num_cpus=jobs or None, include_dashboard=False, _temp_dir=str(sessions))
        else:
            start_ray(address=address)
    except ConnectionError as error:
        raise ConfigError(f"--address: no Ray cluster answers at {address} ({error})") from None
    try:
        yield
    finally:
        ray.shutdown()
