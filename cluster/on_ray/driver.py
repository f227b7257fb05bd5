"""The spawner for Ray: starts or joins a cluster, and starts and watches the learner actor.

Invariant: the driver holds the run's lock and no other state; whatever ends it, the actors die with it.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.environments.vector import EnvironmentSpec
from cluster.dashboards.command import provisioned
from cluster.on_ray.learner import LearnerActor, LearnerWatch, RunFailed, remote_cause
from cluster.on_ray.nodes import place, start_actor, sweep_other_machines
from cluster.on_ray.placement import object_store_bytes
from cluster.run.session import RunSession
from cluster.run.temporary import ray_directory
from configs.schema import RunConfig

LOG = logging.getLogger(__name__)


def train_on_ray(session: RunSession) -> dict[str, Any]:
    """Train on Ray, one learner actor after the other, from the session's epoch on; the summary. Raises RunFailed."""
    config, say = session.config, session.console.say
    _connect(config, session.spec, session.temporary, say)
    try:
        sweep_other_machines(config.run_dir)
        watch, is_restart = LearnerWatch(session), False
        while True:
            # A new plan each time, because a lost node may not be back.
            requests = place(config, session.plan.starts_service, say, session.stop_requested, is_restart=is_restart)
            nonce = session.run.write_nonce()
            learner = start_actor(
                LearnerActor, requests["learner"], config, session.spec, session.epoch, requests, nonce
            )
            try:
                summary = watch.follow(learner, learner.run.remote())
                break
            except (RayError, TimeoutError) as error:
                watch.back_off(error)
            session.begin_epoch()
            is_restart = True
        del learner, watch  # the last handles: the actor ends, and with it what it started
        sweep_other_machines(config.run_dir)
        return summary
    except RayError as error:
        raise RunFailed(remote_cause(error)) from error
    finally:
        ray.shutdown()


def _connect(config: RunConfig, spec: EnvironmentSpec, temporary: Path, say: Callable[[str], None]) -> None:
    cluster = config.cluster
    if cluster.mode == "connect":
        try:
            context = start_ray(address=cluster.address)
        except ConnectionError as error:
            raise RunFailed(
                f"cluster.address={cluster.address}: no Ray cluster answers there ({error}); start one with"
                " `ray start --head`"
            ) from None
    else:
        with provisioned(temporary):
            context = start_ray(
                include_dashboard=cluster.dashboard,
                object_store_memory=object_store_bytes(config, spec),
                _temp_dir=str(ray_directory(config.run_dir)),
            )
    if context.dashboard_url:
        say(f"Ray dashboard: http://{context.dashboard_url}")


def start_ray(*, address: str = "local", _temp_dir: str | None = None, **options: Any) -> Any:
    """`ray.init` of the cluster at `address`, or of this process's own, regardless of RAY_ADDRESS, with its session in
    `_temp_dir`; this process keeps its signal handlers. Raises ConnectionError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Tasks and actors hide GPUs themselves; Ray's own way prints warnings.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if _temp_dir is not None:
        Path(_temp_dir).parent.mkdir(mode=0o700, exist_ok=True)
        options["_temp_dir"] = _temp_dir
    with _own_signals():
        return ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)


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
