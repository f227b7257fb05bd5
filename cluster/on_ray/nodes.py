"""The nodes of a real cluster: what the plan knows of them, the wait for free resources, requests as Ray's options,
clean-up.

Invariant: an actor that was assigned no GPU sees none, whatever Ray leaves in its environment.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.on_ray import placement
from cluster.on_ray.placement import Node, Request
from cluster.run import temporary
from cluster.run.directory import RunDirectory
from cluster.run.logs import log_to_file
from configs.schema import RunConfig
from configs.terms import has_reward_tables

LOG = logging.getLogger(__name__)
NODE_ID = "ray.io/node-id"
"""Ray's own label of every node."""
AUTOSCALER_PATIENCE_S = 8.0
"""It reports every five seconds."""
SWEEP_BUDGET_S = 5.0
OWN_TYPE = re.compile("(node_|local_node_)[0-9a-f]{16,}")
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def place(
    config: RunConfig,
    needs_service: bool,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
    *,
    is_restart: bool = False,
) -> dict[str, Request]:
    """Requests that fit the cluster that this process is connected to.

    Where they do not fit, it waits for nodes if any may join, and else shrinks the requests. After a restart
    (`is_restart`) it first waits for a lost node to come back. `needs_service`: the run starts annotation services.
    Raises `placement.DoesNotFit` and `placement.Interrupted`.
    """
    make_plan = partial(
        placement.plan,
        config.cluster,
        config.actors,
        needs_annotator=has_reward_tables(config),
        needs_service=needs_service,
        may_grow=True,
    )
    try:
        requests = make_plan(nodes())
    except placement.DoesNotFit:
        connects = config.cluster.mode == "connect"
        may_grow = connects and more_nodes_may_come(config.cluster.more_nodes)
        waits = may_grow or (connects and is_restart)
        try:
            requests = placement.wait_for_room(
                make_plan,
                nodes,
                _ask_autoscaler,
                timeout_s=config.cluster.placement_timeout_s if waits else 0.0,
                say=say,
                stop_requested=stop_requested,
            )
        except placement.DoesNotFit:
            requests = make_plan(nodes(), may_grow=may_grow)
    LOG.info("placement:\n%s", placement.table(requests))
    if (message := placement.shortage(config.cluster, requests)) is not None:
        say(message)
    return requests


def more_nodes_may_come(setting: str) -> bool:
    """Whether nodes may join the cluster that this process is connected to, by `cluster.more_nodes`; `auto` looks for
    an autoscaler, and waits a few seconds for its first report."""
    if setting != "auto":
        return setting == "expected"
    deadline = time.monotonic() + AUTOSCALER_PATIENCE_S
    while (found := _has_autoscaler()) is None and time.monotonic() < deadline:
        time.sleep(0.5)
    return bool(found)


def _has_autoscaler() -> bool | None:
    """Whether an autoscaler starts nodes; None where nothing has reported yet. An autoscaler names node types; a
    cluster started by hand has a monitor without them, which calls each node its own type."""
    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        types = {node.ray_node_type_name for node in [*status.active_nodes, *status.idle_nodes]}
        has_reported = int(status.stats.autoscaler_version or 0) > 0
        if (report := _internal_kv_get(DEBUG_AUTOSCALING_STATUS)) is not None:  # of autoscalers before version 2
            before = json.loads(report).get("autoscaler_report")
            has_reported |= before is not None
            types |= set((before or {}).get("active_nodes", ()))
    except Exception as error:  # the exceptions differ between versions of Ray
        LOG.warning("it could not be found out whether an autoscaler runs; cluster.more_nodes says so: %s", error)
        return None
    if any(not OWN_TYPE.fullmatch(name) for name in types):
        return True
    return False if has_reported else None


def nodes() -> list[Node]:
    """The nodes of the cluster with their total resources, free or not."""
    return [
        Node(
            id=node["NodeID"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            alive=node["Alive"],
        )
        for node in ray.nodes()
    ]


def _ask_autoscaler(bundles: list[dict[str, float]]) -> None:
    """Request the whole run's resources from an autoscaler, if there is one; an empty list withdraws them."""
    try:
        request_resources(bundles=bundles)
    except Exception as error:  # a hint only: the run waits for nodes without it, too
        LOG.warning("the autoscaler could not be asked for resources: %s", error)


def ray_options(request: Request, index: int = 0, node_id: str | None = None) -> dict[str, Any]:
    """Ray's options for actor number `index` of `request`; preferred nodes are hints, with other nodes as fallback.
    With `node_id` it waits for room on that node."""
    preferred = [*request.homes[index : index + 1], *([f"!in({', '.join(request.avoid)})"] if request.avoid else [])]
    selectors: list[dict[str, str]] = [*({NODE_ID: nodes} for nodes in preferred), {}]
    if node_id is not None:
        selectors = [{NODE_ID: node_id}]
    return {
        "num_cpus": request.cpus,
        "num_gpus": request.gpus,
        "scheduling_strategy": "SPREAD" if request.count > 1 else "DEFAULT",
        "label_selector": selectors[0],
        "fallback_strategy": [{"label_selector": selector} for selector in selectors[1:]],
    }


def start_actor(actor_class: Any, request: Request, *arguments: Any, index: int = 0, node_id: str | None = None) -> Any:
    """Start actor number `index` of `request` as an `actor_class` of these arguments; `node_id`: see `ray_options`."""
    return actor_class.options(**ray_options(request, index, node_id)).remote(*arguments)


def enter_run(config: RunConfig) -> RunDirectory:
    """The run's directory, in an actor's process, which gets its assigned GPUs, temporary directory and log file."""
    keep_to_assigned_gpus()
    temporary.enter(config.run_dir)
    run = RunDirectory(Path(config.run_dir))
    log_to_file(run.log)
    return run


def keep_to_assigned_gpus() -> None:
    """Hide the node's GPUs from this actor and its children where it was assigned none, so that `auto` takes no other
    actor's.

    Must be called before CUDA is first used.
    """
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ.update(dict.fromkeys(GPU_VARIABLES, ""))


@ray.remote(num_cpus=0, max_retries=0)
def _sweep(run_dir: str) -> None:
    temporary.sweep(run_dir)


def sweep_other_machines(run_dir: str) -> None:
    """Remove the run's temporary directories on all living nodes of other machines; a node that does not answer blocks
    nothing.

    The driver calls it while it holds the run's lock and no actor of the run lives."""
    here = ray.util.get_node_ip_address()
    others = {
        node["NodeManagerAddress"]: node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeManagerAddress"] != here
    }
    try:
        pinned = [NodeAffinitySchedulingStrategy(node_id, soft=False) for node_id in others.values()]
        sweeping = [_sweep.options(scheduling_strategy=strategy).remote(run_dir) for strategy in pinned]
        if sweeping:
            _, unfinished = ray.wait(sweeping, num_returns=len(sweeping), timeout=SWEEP_BUDGET_S)
            if unfinished:
                message = "%d nodes did not sweep their temporary files in time; the next start of this run does"
                LOG.warning(message, len(unfinished))
    except RayError as error:
        LOG.warning("temporary files on other nodes were not swept; the next start of this run does: %s", error)
