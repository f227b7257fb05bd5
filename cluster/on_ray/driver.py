"""The spawner for Ray: starts or joins a cluster, and starts and watches the learner actor.

Invariant: the driver holds the run's lock and no other state; whatever ends it, the actors die with it.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.environments.vector import EnvironmentSpec
from cluster.dashboards.command import provisioned
from cluster.on_ray.learner import LearnerActor, LearnerWatch, RunFailed, remote_cause
from cluster.on_ray.nodes import place, start_actor, sweep_other_machines
from cluster.on_ray.placement import object_store_bytes
from cluster.plan import RunPlan
from cluster.run.directory import RunDirectory
from cluster.run.temporary import ray_directory
from configs.schema import RunConfig

LOG = logging.getLogger(__name__)


def train(
    plan: RunPlan,
    spec: EnvironmentSpec,
    run: RunDirectory,
    run_epoch: int,
    *,
    temporary: Path,
    stop_requested: Callable[[], bool],
    say: Callable[[str], None],
    on_line: Callable[[Mapping[str, Any]], None],
    begin_epoch: Callable[[], int],
) -> dict[str, Any]:
    """Run on Ray from `run_epoch` on; the summary. `begin_epoch` gives the epoch of a learner that is restarted.

    Raises RunFailed."""
    config = plan.config
    _connect(config, spec, temporary, say)
    try:
        sweep_other_machines(config.run_dir)

        def start(epoch: int) -> Any:
            # A new plan each time, because a lost node may not be back.
            requests = place(config, plan.starts_service, say, stop_requested, is_restart=epoch != run_epoch)
            return start_actor(LearnerActor, requests["learner"], config, spec, epoch, requests, run.write_nonce())

        watch = LearnerWatch(config, run, start, begin_epoch, stop_requested=stop_requested, say=say, on_line=on_line)
        summary = watch.run(run_epoch)
        sweep_other_machines(config.run_dir)
        return summary
    except RayError as error:
        raise RunFailed(remote_cause(error)) from error
    finally:
        ray.shutdown()


def _connect(config: RunConfig, spec: EnvironmentSpec, temporary: Path, say: Callable[[str], None]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors hide GPUs themselves; Ray's own way prints warnings.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    cluster = config.cluster
    with _own_signals():
        if cluster.mode == "connect":
            try:
                context = ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
            except ConnectionError as error:
                raise RunFailed(
                    f"cluster.address={cluster.address}: no Ray cluster answers there ({error}); start one with"
                    " `ray start --head`"
                ) from None
        else:
            with provisioned(temporary):
                sessions = ray_directory(config.run_dir)
                sessions.parent.mkdir(mode=0o700, exist_ok=True)
                context = ray.init(
                    address="local",  # regardless of RAY_ADDRESS
                    include_dashboard=cluster.dashboard,
                    object_store_memory=object_store_bytes(config, spec),
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    _temp_dir=str(sessions),
                )
    if context.dashboard_url:
        say(f"Ray dashboard: http://{context.dashboard_url}")


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """For use around `ray.init`: keeps the handler of SIGTERM, which Ray replaces by one that exits without a
    checkpoint, and blocks SIGHUP in the processes that Ray starts, because a closing terminal would end them before the
    driver can stop."""
    on_terminate = signal.getsignal(signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, on_terminate)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
