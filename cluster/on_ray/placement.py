"""The placement of a run's actors: what each kind requests, on which nodes it fits, and what is missing.

Invariant: pure functions; a plan either fits the nodes, each actor on one of them, or DoesNotFit lists in a table what
does not.

    kind        prefers                                           hint
    learner     a GPU where the cluster has any                   the smallest node that fits all, else those that fit
    replica     `service_gpus`                                    the emptiest node each
    annotator   with replicas the first learner's node; else as   its node
                they
    inference   `inference_gpus`, or nodes without GPUs           the emptiest node each
    worker      nodes without GPUs, away from the learners        the emptiest such node each; else away from the others
                with inference actors: the node of its own        none: it is started where its inference actor is
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from actors.environments.vector import EnvironmentSpec
from configs.schema import ActorsConfig, ClusterConfig, RunConfig

STEP_BYTES = 4096
"""The least estimate for one environment's step in a rollout: more than NetHack's observations take."""
SMALLEST_BYTES = 75 * 2**20
"""The least size of an object store that Ray accepts."""
DEFAULT_BYTES = 200_000_000
EPSILON = 1e-6
SAY_INTERVAL_S = 10.0
LEAST_SHARE = 0.001
"""The smallest share of the requested CPUs that is tried."""


def rollout_bytes(config: RunConfig, spec: EnvironmentSpec) -> int:
    """The estimated size of one rollout."""
    observations = sum(entry.dtype.itemsize * math.prod(entry.shape) for entry in spec.observations.values())
    features = 3 * 4 * len(spec.features)
    per_step = max(STEP_BYTES, observations + features + 4 * spec.num_actions + 64)
    return per_step * config.actors.envs_per_worker * (config.actors.rollout_steps + 1)


def rollouts_at_once(config: RunConfig) -> int:
    """The most rollouts in memory: calls in flight, one more per worker (taken by the learner), and its batch."""
    return config.actors.num_workers * (config.actors.rollouts_in_flight + 1) + config.learner.rollouts_per_batch


def object_store_bytes(config: RunConfig, spec: EnvironmentSpec) -> int:
    """`cluster.object_store_bytes`, or its default where that is 0."""
    needed = 2 * rollouts_at_once(config) * rollout_bytes(config, spec)
    return config.cluster.object_store_bytes or max(DEFAULT_BYTES, needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the cluster with its total resources."""

    id: str
    cpus: float
    gpus: float = 0.0
    alive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The actors of one kind: what each requests, and on which nodes it should run; nodes are hints."""

    cpus: float
    gpus: float
    count: int
    homes: tuple[str, ...] = ()
    """Ids of preferred nodes: the first actor's, the second's, …; may be fewer than actors."""
    avoid: tuple[str, ...] = ()
    """Ids of nodes to avoid, for an actor without a preferred node or whose node is full."""


class DoesNotFit(RuntimeError):
    """The requests do not fit the nodes; the message has the table."""

    def __init__(self, message: str, missing: Mapping[str, Request], bundles: Sequence[Mapping[str, float]]) -> None:
        super().__init__(message)
        self.missing = dict(missing)
        """The actors that found no node, by kind."""
        self.bundles = [dict(bundle) for bundle in bundles]
        """All requested resources, one bundle per actor, by Ray's names."""


class Interrupted(RuntimeError):
    """The user requested a stop before the policy's training began."""


def plan(
    cluster: ClusterConfig,
    actors: ActorsConfig,
    nodes: Sequence[Node],
    *,
    needs_annotator: bool,
    needs_service: bool = True,
    may_grow: bool = False,
) -> dict[str, Request]:
    """Requests per kind of actor, with hints for the present `nodes`. Raises DoesNotFit.

    Unless nodes may join (`may_grow`), CPU requests that do not fit shrink in proportion, so that a laptop runs
    everything, slower. In `connect` only `cluster.min_workers` of the workers must fit now, where that is not 0.
    """
    nodes = [node for node in nodes if node.alive]
    replicas = cluster.service_replicas if needs_annotator and needs_service else 0
    requests = _requests(cluster, actors, needs_annotator, replicas, sum(node.gpus for node in nodes))
    required = {part: request.count for part, request in requests.items()}
    if cluster.mode == "connect" and cluster.min_workers:
        required["worker"] = min(cluster.min_workers, actors.num_workers)
    missing = _missing(requests, required, nodes)
    if missing and not may_grow:
        requests = _shrunk(requests, nodes) or requests
        missing = _missing(requests, required, nodes)
    if missing:
        raise DoesNotFit(
            f"the parts do not fit the cluster: no room for {as_text(missing)}\n{table(requests)}\nThe cluster has"
            f" {_have(nodes)}, and each actor must fit on one node. Add nodes, or lower actors.num_workers,"
            " cluster.*_cpus or cluster.*_gpus",
            missing,
            [
                {name: amount for name, amount in (("CPU", request.cpus), ("GPU", request.gpus)) if amount}
                for request in requests.values()
                for _ in range(request.count)
            ],
        )
    return _with_hints(requests, _pack(requests, nodes), nodes)


def shortage(cluster: ClusterConfig, requests: Mapping[str, Request]) -> str | None:
    """Says what a plan grants where that is less than `cluster` requests; else None."""
    asked = {"learner": cluster.learner_cpus}
    asked |= dict.fromkeys(("worker", "inference"), cluster.worker_cpus)
    asked |= dict.fromkeys(("annotator", "replica"), cluster.annotator_cpus)
    if all(request.cpus >= asked[part] for part, request in requests.items()):
        return None
    wanted = sum(asked[part] * request.count for part, request in requests.items())
    got = f"each gets its share, {as_text(requests)}"
    return f"the parts ask for {wanted:g} CPU, more than the cluster has or will get: {got}"


def _missing(requests: Mapping[str, Request], required: Mapping[str, int], nodes: Sequence[Node]) -> dict[str, Request]:
    homes = _pack(requests, nodes)
    left_over = {part: required[part] - len(homes[part]) for part in requests}
    return {part: replace(requests[part], count=count) for part, count in left_over.items() if count > 0}


def _shrunk(requests: Mapping[str, Request], nodes: Sequence[Node]) -> dict[str, Request] | None:
    """The requests with all CPUs scaled down just enough for every actor to find a node; None where no scale does."""
    cpus_there = sum(node.cpus for node in nodes)
    cpus_wanted = sum(request.cpus * request.count for request in requests.values())
    share = min(1.0, cpus_there / cpus_wanted) if cpus_wanted else 0.0
    while share >= LEAST_SHARE:
        # Ray counts in units of 1/10000; rounding down keeps the sum within the nodes.
        scaled = {
            part: replace(request, cpus=int(request.cpus * share * 10_000) / 10_000)
            for part, request in requests.items()
        }
        if not _missing(scaled, {part: request.count for part, request in scaled.items()}, nodes):
            return scaled
        share *= 0.95  # each actor must fit on one node
    return None


def _requests(
    cluster: ClusterConfig, actors: ActorsConfig, needs_annotator: bool, replicas: int, gpus_there: float
) -> dict[str, Request]:
    number = cluster.num_learners
    learner_gpus = cluster.learner_gpus
    if learner_gpus < 0:  # one each, or as few learners per GPU as there are GPUs for
        learner_gpus = min(gpus_there, 1 / math.ceil(number / gpus_there)) if gpus_there else 0.0
    requests = {"learner": Request(cpus=cluster.learner_cpus, gpus=learner_gpus, count=number)}
    if needs_annotator:
        if replicas:
            requests["replica"] = Request(cpus=cluster.annotator_cpus, gpus=cluster.service_gpus, count=replicas)
        requests["annotator"] = Request(
            cpus=cluster.annotator_cpus, gpus=0.0 if replicas else cluster.service_gpus, count=1
        )
    if actors.inference == "central":
        requests["inference"] = Request(
            cpus=cluster.worker_cpus, gpus=cluster.inference_gpus, count=cluster.inference_actors
        )
    requests["worker"] = Request(cpus=cluster.worker_cpus, gpus=cluster.worker_gpus, count=actors.num_workers)
    return requests


def _pack(requests: Mapping[str, Request], nodes: Sequence[Node]) -> dict[str, list[str]]:
    """The nodes of those actors that fit, per kind; kinds choose in the order of `requests`."""
    cpus = {node.id: node.cpus for node in nodes}
    gpus = {node.id: node.gpus for node in nodes}
    with_gpus = {node.id for node in nodes if node.gpus}
    homes: dict[str, list[str]] = {}
    for part, request in requests.items():
        taken: dict[str, int] = dict.fromkeys(cpus, 0)
        homes[part] = []
        for index in range(request.count):
            room = [id for id in cpus if cpus[id] >= request.cpus - EPSILON and gpus[id] >= request.gpus - EPSILON]
            if part == "worker" and "inference" in requests:  # beside its inference actor, if that has a node
                host = index % requests["inference"].count
                room = [id for id in room if id in homes["inference"][host : host + 1]]
            if not room:
                continue
            learners = homes["learner"]
            if part == "learner":  # together, on the smallest that fits: large nodes are for replicas and workers
                left = request.count - len(homes[part])
                for_all = {id for id in room if cpus[id] >= request.cpus * left and gpus[id] >= request.gpus * left}
                home = min(room, key=lambda id: (id not in for_all, -taken[id], gpus[id], cpus[id], id))
            elif part == "annotator" and not request.gpus and "replica" in requests:
                home = min(room, key=lambda id: (id not in learners[:1], id in with_gpus, -cpus[id], id))
            else:  # spread; without GPUs also away from GPU nodes and the learners
                wastes_gpus = set() if request.gpus else with_gpus
                home = min(
                    room, key=lambda id: (id in wastes_gpus, id in learners, taken[id], -gpus[id], -cpus[id], id)
                )
            cpus[home] -= request.cpus
            gpus[home] -= request.gpus
            taken[home] += 1
            homes[part].append(home)
    return homes


def _with_hints(
    requests: Mapping[str, Request], homes: Mapping[str, Sequence[str]], nodes: Sequence[Node]
) -> dict[str, Request]:
    """Adds hints where there is a choice of nodes."""
    if len(nodes) < 2:
        return dict(requests)
    hinted = {part: replace(request, homes=tuple(homes[part])) for part, request in requests.items()}
    learners = set(homes["learner"])
    reserved = {*learners, *homes.get("replica", ()), *(node.id for node in nodes if node.gpus)}
    worker = hinted["worker"]
    if "inference" in requests:
        return hinted
    if not worker.gpus and len(homes["worker"]) == worker.count and not reserved.intersection(homes["worker"]):
        hinted["worker"] = replace(worker, avoid=tuple(sorted(reserved)))
    elif len(homes["worker"]) == worker.count and not learners.intersection(homes["worker"]):
        hinted["worker"] = replace(worker, avoid=tuple(sorted(learners)))
    return hinted


def wait_for_room(
    make_plan: Callable[[Sequence[Node]], dict[str, Request]],
    nodes: Callable[[], Sequence[Node]],
    ask: Callable[[list[dict[str, float]]], None],
    *,
    timeout_s: float,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> dict[str, Request]:
    """The first plan that fits; for at most `timeout_s` it waits for nodes to join, which `ask` requests from an
    autoscaler. Says what it waits for at once and every ten seconds. Raises DoesNotFit (the last one) or
    Interrupted."""
    started, said_at = time.monotonic(), -SAY_INTERVAL_S
    asked: list[dict[str, float]] = []
    try:
        while True:
            there = nodes()
            try:
                return make_plan(there)
            except DoesNotFit as error:
                waited = time.monotonic() - started
                if waited >= timeout_s:
                    raise
                if stop_requested():
                    raise Interrupted("stopped while it waited for resources") from None
                if error.bundles != asked:
                    asked = error.bundles
                    ask(asked)
                if waited - said_at >= SAY_INTERVAL_S:
                    said_at = waited
                    alive = [node for node in there if node.alive]
                    say(f"waiting for {as_text(error.missing)}, {waited:.0f} s; the cluster has {_have(alive)}")
            time.sleep(min(1.0, timeout_s))
    finally:
        if asked:
            ask([])


def as_text(requests: Mapping[str, Request]) -> str:
    """`2 x replica (0.5 CPU, 1 GPU), 1 x annotator (0.5 CPU)`."""
    return ", ".join(
        f"{request.count} x {part} ({_amounts(request.cpus, request.gpus)})" for part, request in requests.items()
    )


def _amounts(cpus: float, gpus: float) -> str:
    cpus = round(cpus, 2)
    return ", ".join([*([f"{cpus:g} CPU"] if cpus or not gpus else []), *([f"{gpus:g} GPU"] if gpus else [])])


def _have(nodes: Sequence[Node]) -> str:
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return f"{cpus:g} CPU and {gpus:g} GPU on {len(nodes)} node{'s' if len(nodes) != 1 else ''}"


def table(requests: Mapping[str, Request]) -> str:
    """The requests as text, a line each."""
    rows = []
    for part, request in requests.items():
        hints = [f"{count} on {id[:8]}" for id, count in Counter(request.homes).items()]
        hints += [f"else not on {', '.join(id[:8] for id in request.avoid)}"] if request.avoid else []
        amounts = f"{request.count:>4} x  {request.cpus:>6g} CPU  {request.gpus:>4g} GPU"
        rows.append(f"  {part:<10} {amounts}  {'; '.join(hints)}".rstrip())
    return "\n".join(rows)
