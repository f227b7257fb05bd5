"""Removes a run's temporary directories on the other nodes of a cluster.

Invariant: the driver, which holds the run's lock, calls it while no actor of the run lives; a node that does not answer
blocks nothing.
"""

import logging

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.run import temporary

LOG = logging.getLogger(__name__)
BUDGET_S = 5.0


@ray.remote(num_cpus=0, max_retries=0)
def _sweep(run_dir: str) -> None:
    temporary.sweep(run_dir)


def sweep_other_machines(run_dir: str) -> None:
    """Remove the run's temporary directory on every living node of another machine than this one."""
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
            _, unfinished = ray.wait(sweeping, num_returns=len(sweeping), timeout=BUDGET_S)
            if unfinished:
                message = "%d nodes did not sweep their temporary files in time; the next start of this run does"
                LOG.warning(message, len(unfinished))
    except RayError as error:
        LOG.warning("temporary files on other nodes were not swept; the next start of this run does: %s", error)
