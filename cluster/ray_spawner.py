"""The spawner for Ray: starts or joins a cluster, starts the learner actor, and watches it from the driver.

Invariant: the driver holds the run's lock and nothing else of value; whatever ends it, the actors die with it.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.environment import EnvironmentSpec
from cluster import placement
from cluster.dashboards.command import provisioned
from cluster.ray_learner import LearnerActor
from cluster.run_directory import RunDirectory
from configs.schema import RunConfig

LOG = logging.getLogger(__name__)
POLL_INTERVAL_S = 0.5
STEP_BYTES = 4096
"""Upper bound of what one environment step takes in a rollout of the built-in networks' observations, images aside."""


class RunFailed(RuntimeError):
    """The run ended by itself before its goal; the message is for the user."""


def train(
    config: RunConfig,
    spec: EnvironmentSpec,
    run: RunDirectory,
    run_epoch: int,
    *,
    temporary: Path,
    stop_requested: Callable[[], bool],
    say: Callable[[str], None],
    on_line: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Run one epoch on Ray; the summary. Raises RunFailed."""
    _connect(config, temporary, say)
    try:
        requests = placement.plan(
            config.cluster, config.actors, needs_annotator=config.reward_model.name != "none", resources=ray.cluster_resources()
        )
        LOG.info("placement:\n%s", placement.table(requests))
        options = {"num_cpus": requests["learner"].cpus, "num_gpus": requests["learner"].gpus}
        learner = cast(Any, LearnerActor).options(**options).remote(config, spec, run_epoch, requests, run.write_nonce())
        return _watch(config, learner, stop_requested=stop_requested, say=say, on_line=on_line)
    except RayError as error:
        raise RunFailed(_first_line(error)) from error
    finally:
        ray.shutdown()


def _connect(config: RunConfig, temporary: Path, say: Callable[[str], None]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    cluster, actors = config.cluster, config.actors
    on_terminate = signal.getsignal(signal.SIGTERM)
    if cluster.mode == "connect":
        try:
            context = ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise RunFailed(
                f"cluster.address={cluster.address}: no Ray cluster answers there ({error}); start one with `ray start --head`"
            ) from None
    else:
        rollout_bytes = (
            actors.num_workers * (actors.rollouts_in_flight + 1) * actors.envs_per_worker * (actors.rollout_steps + 1) * STEP_BYTES
        )
        with provisioned(temporary):
            context = ray.init(
                address="local",  # whatever RAY_ADDRESS says
                include_dashboard=cluster.dashboard,
                object_store_memory=cluster.object_store_bytes or max(200_000_000, 2 * rollout_bytes),
                log_to_driver=False,
                logging_level=logging.WARNING,
                _temp_dir=str(temporary / "ray"),
            )
    signal.signal(signal.SIGTERM, on_terminate)  # `ray.init` has put its own in place, which exits without a checkpoint
    if context.dashboard_url:
        say(f"Ray dashboard: http://{context.dashboard_url}")


def _watch(
    config: RunConfig,
    learner: Any,
    *,
    stop_requested: Callable[[], bool],
    say: Callable[[str], None],
    on_line: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Show progress until the learner ends; on a stop request give it the shutdown budget."""
    run = learner.run.remote()
    started = time.monotonic()
    deadline: float | None = None
    placed = False
    while True:
        if ray.wait([run], timeout=POLL_INTERVAL_S)[0]:
            return ray.get(run)
        now = time.monotonic()
        if stop_requested() and deadline is None:
            learner.stop.remote()
            deadline = now + config.cluster.shutdown_budget_s
        if deadline is not None and now > deadline:
            raise RunFailed(
                f"the learner did not stop within cluster.shutdown_budget_s = {config.cluster.shutdown_budget_s:g} s; ended by force"
            )
        try:
            line = ray.get(learner.progress.remote(), timeout=2 * POLL_INTERVAL_S)
        except GetTimeoutError:
            if not placed and now - started > config.cluster.placement_timeout_s:
                raise RunFailed(
                    f"the learner was not placed within cluster.placement_timeout_s = {config.cluster.placement_timeout_s:g} s;"
                    f" free resources: {ray.available_resources()}"
                ) from None
            if not placed and deadline is None:
                say(f"waiting for the learner to start, {now - started:.0f} s")
            continue
        placed = True
        if "env_steps" in line:
            on_line(line)


def _first_line(error: RayError) -> str:
    """The cause as a person wants it: the remote exception's own last line where there is one."""
    cause = getattr(error, "cause", None)
    text = str(cause or error).strip()
    return text.splitlines()[-1] if cause is None and "Traceback" in text else text
