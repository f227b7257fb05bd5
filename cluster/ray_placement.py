"""Placement on a real cluster: its nodes as the plan sees them, the wait for room, and requests as Ray's options.

Invariant: an actor that was given no GPU sees none, whatever Ray leaves in its environment.
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from cluster import placement
from cluster.placement import Node, Request
from configs.schema import RunConfig

LOG = logging.getLogger(__name__)
NODE_ID = "ray.io/node-id"
"""Ray's own label of every node."""
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def place(config: RunConfig, needs_service: bool, say: Callable[[str], None], stop_requested: Callable[[], bool]) -> dict[str, Request]:
    """Requests that fit the cluster that this process is connected to; in `connect` room is waited for. `needs_service` is whether the
    run starts annotation services.

    Raises `placement.DoesNotFit` and `placement.Interrupted`.
    """

    def make_plan(nodes: Sequence[Node]) -> dict[str, Request]:
        return placement.plan(
            config.cluster,
            config.actors,
            needs_annotator=config.reward_model.name != "none",
            needs_service=needs_service,
            nodes=nodes,
        )

    requests = placement.wait_for_room(
        make_plan,
        nodes,
        _ask_autoscaler,
        timeout_s=config.cluster.placement_timeout_s if config.cluster.mode == "connect" else 0.0,
        say=say,
        stop_requested=stop_requested,
    )
    LOG.info("placement:\n%s", placement.table(requests))
    return requests


def nodes() -> list[Node]:
    """The nodes of the cluster with all they have, busy or not."""
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
    """Tell an autoscaler, where there is one, what the whole run wants; an empty list takes it back."""
    try:
        request_resources(bundles=bundles)
    except Exception as error:  # a hint: without it the run waits for nodes all the same
        LOG.warning("the autoscaler could not be asked for resources: %s", error)


def options(request: Request, index: int = 0) -> dict[str, Any]:
    """Ray's options for the actor number `index` of `request`. What it prefers is a wish: it goes elsewhere where there is no room."""
    wishes = [*request.homes[index : index + 1], *([f"!in({', '.join(request.avoid)})"] if request.avoid else [])]
    selectors: list[dict[str, str]] = [*({NODE_ID: wish} for wish in wishes), {}]
    return {
        "num_cpus": request.cpus,
        "num_gpus": request.gpus,
        "scheduling_strategy": "SPREAD" if request.count > 1 else "DEFAULT",
        "label_selector": selectors[0],
        "fallback_strategy": [{"label_selector": selector} for selector in selectors[1:]],
    }


def keep_to_assigned_gpus() -> None:
    """Hide the node's GPUs from this actor and its children where it was given none: `auto` must not take another part's.

    To be called before CUDA is first used.
    """
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ.update(dict.fromkeys(GPU_VARIABLES, ""))
