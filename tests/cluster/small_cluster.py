"""A Ray cluster of three nodes on this machine, one of which joins late; prints where things went as JSON. Run by
test_nodes.py: Ray reads how it is to authenticate when it is first imported, so it has a process of its own."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}

import ray
from ray.cluster_utils import Cluster

from cluster.on_ray import nodes as ray_nodes
from cluster.on_ray.placement import Request
from configs.loading import load_config

MEMORY = {"object_store_memory": 80_000_000}


@ray.remote
class Visitor:
    """Says where it is and what it sees."""

    def __init__(self) -> None:
        ray_nodes.keep_to_assigned_gpus()

    def where(self) -> tuple[str, str | None]:
        """Node, and the GPUs that CUDA would see."""
        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")


def visit(requests: Mapping[str, Request]) -> dict[str, list[tuple[str, str | None]]]:
    """Where the actors of a plan go, and what they see, all there at once."""
    actors = {
        part: [Visitor.options(**ray_nodes.ray_options(request, index)).remote() for index in range(request.count)]
        for part, request in requests.items()
    }
    seen = {part: ray.get([actor.where.remote() for actor in there], timeout=240) for part, there in actors.items()}
    for actor in chain(*actors.values()):
        ray.kill(actor)
    time.sleep(0.5)  # until what they had is free again
    return seen


def main() -> None:
    folder = tempfile.mkdtemp(prefix="dc-", dir="/tmp")  # short: Ray's sockets lie below it
    os.environ["RAY_TMPDIR"] = folder  # of sessions, and of what Ray's test cluster writes beside them
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, **MEMORY}
    )
    cluster.add_node(num_cpus=2, num_gpus=0, **MEMORY)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        settings = [
            "run_dir=/nowhere/delphi-placement",
            "actors.num_workers=2",
            "actors.rollouts_in_flight=1",
            "cluster.learner_gpus=1",
        ]
        settings += [
            "cluster.mode=connect",
            "cluster.placement_timeout_s=240",
            "cluster.more_nodes=expected",
            "cluster.service_replicas=2",
            "cluster.service_gpus=0.5",
        ]
        config = load_config(preset="nethack_score", overrides=settings)
        said: list[str] = []
        with ThreadPoolExecutor(1) as pool:
            placing = pool.submit(ray_nodes.place, config, True, said.append, lambda: False)
            time.sleep(2)
            cluster.add_node(num_cpus=4, num_gpus=2, **MEMORY)
            requests = placing.result(240)
        gpu_node = next(node.id for node in ray_nodes.nodes() if node.gpus)
        went = visit(requests)
        crowd = visit({"worker": replace(requests["worker"], count=5)})["worker"]  # more than fit away from the learner
        ray_nodes.sweep_other_machines(
            config.run_dir
        )  # all nodes are this machine: nothing is swept from under the run
        grows = ray_nodes.more_nodes_may_come("auto")
        print(
            json.dumps(
                {
                    "grows": grows,
                    "said": said,
                    "gpu_node": gpu_node,
                    "went": went,
                    "crowd": crowd,
                    "nodes": len(ray_nodes.nodes()),
                }
            )
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
