"""What each part asks of the machine or cluster, and how requests shrink where they exceed one machine.

Invariant: pure functions; a plan either fits or says in a table why not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from configs.schema import ActorsConfig, ClusterConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one actor of a part asks for."""

    cpus: float
    gpus: float
    count: int


def plan(cluster: ClusterConfig, actors: ActorsConfig, *, needs_annotator: bool, resources: Mapping[str, float]) -> dict[str, Request]:
    """Requests per part against `resources` (Ray's names: CPU, GPU).

    In `local`, CPU requests that exceed the machine shrink in proportion: a laptop runs everything, slower. In `connect` they
    are kept, and RuntimeError carries the table where the cluster is too small for `cluster.min_workers` (0: for all).
    """
    gpus_there = resources.get("GPU", 0.0)
    learner_gpus = cluster.learner_gpus if cluster.learner_gpus >= 0 else min(1.0, gpus_there)
    requests = {
        "learner": Request(cpus=cluster.learner_cpus, gpus=learner_gpus, count=1),
        "worker": Request(cpus=cluster.worker_cpus, gpus=cluster.worker_gpus, count=actors.num_workers),
    }
    if needs_annotator:
        requests["annotator"] = Request(cpus=cluster.annotator_cpus, gpus=cluster.service_gpus, count=1)
    cpus_there = resources.get("CPU", 0.0)
    cpus_wanted = sum(request.cpus * request.count for request in requests.values())
    if cluster.mode == "local" and cpus_wanted > cpus_there > 0:
        # Ray counts in units of 1/10000; rounding down keeps the sum within the machine.
        shrink = cpus_there / cpus_wanted
        requests = {
            part: Request(cpus=int(request.cpus * shrink * 10_000) / 10_000, gpus=request.gpus, count=request.count)
            for part, request in requests.items()
        }
        cpus_wanted = cpus_there
    # Workers beyond `cluster.min_workers` join when there is room.
    late = max(0, actors.num_workers - cluster.min_workers) if cluster.mode == "connect" and cluster.min_workers else 0
    cpus_wanted -= late * requests["worker"].cpus
    gpus_wanted = sum(request.gpus * request.count for request in requests.values()) - late * requests["worker"].gpus
    if cpus_wanted > cpus_there or gpus_wanted > gpus_there:
        raise RuntimeError(
            "the parts do not fit the cluster:\n"
            + table(requests)
            + f"\nwanted {cpus_wanted:g} CPU and {gpus_wanted:g} GPU, the cluster has {cpus_there:g} CPU and {gpus_there:g} GPU."
            " Add nodes, or lower actors.num_workers, cluster.*_cpus or cluster.*_gpus"
        )
    return requests


def table(requests: Mapping[str, Request]) -> str:
    """The requests as text, a line each."""
    rows = [f"  {part:<10} {request.count:>4} x  {request.cpus:>6g} CPU  {request.gpus:>4g} GPU" for part, request in requests.items()]
    return "\n".join(rows)
