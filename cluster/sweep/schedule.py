"""Runs the trials of a sweep as Ray tasks, as many at a time as the machine or the cluster has room for.

Invariant: all state is in the run directories: whatever ends the driver, a task or a node, the same sweep goes on from
the runs' last checkpoints. A run is asked to stop, and so writes a checkpoint, when its task or the driver ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import ray
from ray.exceptions import RayError, TaskCancelledError

from cluster.on_ray.driver import start_ray
from cluster.on_ray.learner import remote_cause
from cluster.run.directory import write_atomically
from cluster.sweep.sweep_file import PlannedRun, Sweep
from cluster.sweep.trial import STOPPED
from configs.checks import ConfigError
from configs.loading import to_dict
from llm_server.child_guard import end_with_parent
from llm_server.child_process import own_search_path

STOP_BUDGET_S = 60.0
"""For the checkpoint of a run that is asked to stop."""
POLL_S = 0.5
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
        waiting = {trial.remote(_write_config(run), sweep.episodes, sweep.envs): run for run in runs}
        while waiting and not stop_requested():
            ended, _ = ray.wait(list(waiting), timeout=POLL_S)
            for task in ended:
                on_end(waiting.pop(task), _result(task))
        for task in waiting:
            ray.cancel(task)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting), timeout=STOP_BUDGET_S)


def _write_config(run: PlannedRun) -> str:
    """Write the run's configuration beside its directory; returns the file's path."""
    file = Path(f"{run.config.run_dir}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(to_dict(run.config), indent=2) + "\n")
    return str(file)


def _result(task: ray.ObjectRef) -> str | None:
    try:
        return ray.get(task)
    except TaskCancelledError:
        return "was stopped"
    except RayError as error:
        return remote_cause(error)


def run_trial(config: str, episodes: int, envs: int) -> str | None:
    """The work of one task: a trial in a process of its own, to its end; what went wrong, None if nothing."""
    if not Path(config).exists():
        return f"this node does not see {config}: --out must be on a file system that all nodes share"
    log = Path(config).with_suffix(".log")
    command = [sys.executable, "-m", "cluster.sweep.trial", config, f"--episodes={episodes}", f"--envs={envs}"]
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )
    try:
        while (code := child.poll()) is None:
            time.sleep(POLL_S)  # a longer wait would not notice that Ray cancels the task
    finally:
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_BUDGET_S)
            child.kill()
            child.wait()
    if code == STOPPED:
        return "was stopped before its end"
    lines = log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
    return f"ended with exit code {code}: {lines[-1]} (more in {log})" if code else None


def _environment() -> dict[str, str]:
    """Without what ties this process to its Ray worker."""
    kept = ("RAY_AUTH_", "RAY_USAGE_")
    left_out = [name for name in os.environ if name.startswith("RAY_") and not name.startswith(kept)]
    return {name: value for name, value in os.environ.items() if name not in left_out} | own_search_path()


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
