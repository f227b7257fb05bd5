from collections.abc import Sequence

import pytest

from cluster.placement import DoesNotFit, Interrupted, Node, Request, plan, table, wait_for_room
from configs.loading import load_config
from configs.schema import ActorsConfig, ClusterConfig
from configs.validation import ConfigError


def nodes(*shapes: tuple[float, float]) -> list[Node]:
    """Nodes n0, n1, ... of (CPUs, GPUs)."""
    return [Node(id=f"n{index}", cpus=cpus, gpus=gpus) for index, (cpus, gpus) in enumerate(shapes)]


def connect(workers: int, *there: Node, needs_service: bool = True, **settings: float) -> dict[str, Request]:
    cluster = ClusterConfig(mode="connect", **settings)  # type: ignore[arg-type]
    return plan(cluster, ActorsConfig(num_workers=workers), needs_annotator=True, needs_service=needs_service, nodes=there)


def test_a_laptop_runs_everything_on_fractions_that_fit() -> None:
    requests = plan(ClusterConfig(mode="local"), ActorsConfig(num_workers=3), needs_annotator=True, nodes=nodes((2, 0)))
    total = sum(request.cpus * request.count for request in requests.values())
    assert 1.99 < total <= 2
    assert requests["worker"].cpus == pytest.approx(requests["learner"].cpus)
    assert requests["worker"].count == 3


def test_replicas_shrink_with_the_rest_of_a_laptop() -> None:
    requests = plan(ClusterConfig(mode="local", service_replicas=2), ActorsConfig(num_workers=3), needs_annotator=True, nodes=nodes((2, 0)))
    assert requests["replica"].count == 2
    assert 1.99 < sum(request.cpus * request.count for request in requests.values()) <= 2
    assert not any(request.homes or request.avoid for request in requests.values())  # there is one node to go to


def test_a_roomy_machine_gives_what_is_asked() -> None:
    cluster = ClusterConfig(mode="local", worker_gpus=0.25)
    requests = plan(cluster, ActorsConfig(num_workers=4), needs_annotator=True, nodes=nodes((16, 2)))
    assert (requests["worker"].cpus, requests["learner"].gpus, requests["annotator"].cpus) == (1.0, 1.0, 0.5)
    assert requests["worker"].gpus == 0.25


def test_without_judgements_no_annotator_is_placed() -> None:
    requests = plan(ClusterConfig(service_replicas=2), ActorsConfig(), needs_annotator=False, nodes=nodes((2, 0)))
    assert set(requests) == {"learner", "worker"}


def test_a_model_that_asks_nothing_gets_no_replicas() -> None:
    assert "replica" not in connect(1, *nodes((8, 0)), needs_service=False, service_replicas=2)


def test_the_learner_takes_a_gpu_node_and_leaves_the_larger_one_to_the_replicas() -> None:
    requests = connect(4, *nodes((8, 0), (8, 4), (8, 1)), service_replicas=4, service_gpus=1)
    assert requests["learner"].gpus == 1
    assert requests["learner"].homes == ("n2",)
    assert requests["replica"] == Request(cpus=0.5, gpus=1, count=4, homes=("n1",) * 4)
    assert requests["annotator"].gpus == 0
    assert requests["annotator"].homes == ("n2",)


def test_workers_spread_over_cpu_nodes_and_leave_gpu_nodes_alone_where_there_is_room() -> None:
    worker = connect(7, *nodes((4, 0), (4, 0), (8, 1), (8, 1)))["worker"]
    assert sorted(worker.homes) == ["n0"] * 3 + ["n1"] * 4  # the annotator is on n0
    assert worker.homes[0] != worker.homes[1]  # in turn
    assert worker.avoid == ("n2", "n3")
    crowded = connect(15, *nodes((4, 0), (4, 0), (8, 1), (8, 1)))["worker"]
    assert crowded.avoid == ("n2",)  # the other GPU node has room; the learner's is still avoided
    packed = connect(20, *nodes((4, 0), (4, 0), (8, 1), (8, 1)))["worker"]
    assert packed.avoid == ()


def test_workers_leave_the_learner_alone_on_a_cluster_without_gpus() -> None:
    requests = connect(6, *nodes((2, 0), (4, 0), (4, 0)))
    assert requests["learner"].gpus == 0
    assert requests["learner"].homes == ("n0",)
    assert requests["worker"].avoid == ("n0",)


def test_dead_nodes_hold_nothing() -> None:
    there = [Node(id="n0", cpus=64, gpus=8, alive=False), Node(id="n1", cpus=4)]
    assert connect(2, *there)["learner"].gpus == 0
    with pytest.raises(DoesNotFit, match="4 CPU and 0 GPU on 1 node"):
        connect(8, *there)


def test_an_actor_must_fit_on_one_node() -> None:
    with pytest.raises(DoesNotFit, match="no room for 1 x learner") as caught:
        connect(1, *nodes((8, 1), (8, 1)), learner_gpus=2)
    assert set(caught.value.missing) == {"learner"}
    with pytest.raises(DoesNotFit):  # three nodes with half a CPU to spare are no CPU
        connect(3, *nodes((2.5, 0), (1.5, 0), (0.9, 0)))


@pytest.mark.parametrize(("min_workers", "fits"), [(2, True), (3, True), (4, False), (0, False)])
def test_a_run_begins_with_the_workers_that_it_needs(min_workers: int, fits: bool) -> None:
    there = nodes((4.5, 0))  # learner, annotator and three workers
    if fits:
        assert connect(8, *there, min_workers=min_workers)["worker"].count == 8  # the others wait for room
    else:
        with pytest.raises(DoesNotFit):
            connect(8, *there, min_workers=min_workers)


@pytest.mark.parametrize(("config", "shape"), [({"mode": "connect"}, (2, 0)), ({"mode": "local", "learner_gpus": 2}, (64, 1))])
def test_what_cannot_fit_is_refused_with_a_table(config: dict, shape: tuple[float, float]) -> None:
    with pytest.raises(RuntimeError) as caught:
        plan(ClusterConfig(**config), ActorsConfig(num_workers=8), needs_annotator=True, nodes=nodes(shape))
    message = str(caught.value)
    assert "8 x" in message
    assert "The cluster has" in message
    assert "actors.num_workers" in message


class Growing:
    """A cluster under a clock of its own, to which nodes come at given times."""

    def __init__(self, *arrivals: tuple[float, Node]) -> None:
        self.now = 0.0
        self.arrivals = arrivals
        self.asked: list[list[dict[str, float]]] = []
        self.said: list[str] = []

    def nodes(self) -> Sequence[Node]:
        return [node for when, node in self.arrivals if when <= self.now]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, timeout_s: float, stop_at: float = 1e9, **settings: float) -> dict[str, Request]:
        return wait_for_room(
            lambda there: connect(4, *there, **settings),
            self.nodes,
            self.asked.append,
            timeout_s=timeout_s,
            say=self.said.append,
            stop_requested=lambda: self.now >= stop_at,
            clock=lambda: self.now,
            sleep=self.sleep,
        )


def test_nodes_that_join_are_waited_for_aloud_and_asked_for() -> None:
    head, gpu = nodes((8, 0), (4, 1))
    cluster = Growing((0, head), (34, gpu))
    requests = cluster.wait(120, learner_gpus=1)
    assert requests["learner"].homes == ("n1",)
    assert cluster.now == 34
    assert cluster.said[0] == "waiting for 1 x learner (1 CPU, 1 GPU), 0 s; the cluster has 8 CPU and 0 GPU on 1 node"
    assert [line.split(", ")[2].split(" s")[0] for line in cluster.said] == ["0", "10", "20", "30"]
    wanted, cancelled = cluster.asked
    assert {"CPU": 1.0, "GPU": 1} in wanted
    assert len(wanted) == 6  # learner, annotator, four workers
    assert cancelled == []


def test_waiting_ends_with_the_table_and_takes_the_request_back() -> None:
    cluster = Growing((0, nodes((2, 0))[0]))
    with pytest.raises(DoesNotFit, match="no room for 4 x worker"):
        cluster.wait(20)
    assert cluster.now == 20
    assert cluster.asked[-1] == []


def test_a_plan_that_fits_at_once_asks_for_nothing() -> None:
    cluster = Growing((0, nodes((8, 0))[0]))
    cluster.wait(120)
    assert (cluster.asked, cluster.said, cluster.now) == ([], [], 0)


def test_stopping_ends_the_wait() -> None:
    cluster = Growing((0, nodes((2, 0))[0]))
    with pytest.raises(Interrupted):
        cluster.wait(120, stop_at=5)
    assert cluster.now < 10
    assert cluster.asked[-1] == []


def test_the_table_says_where_parts_go() -> None:
    text = table(connect(2, *nodes((4, 0), (4, 0), (8, 2)), service_replicas=1, service_gpus=1))
    assert [line.split()[0] for line in text.splitlines()] == ["learner", "replica", "annotator", "worker"]
    assert "1 on n2" in text
    assert "1 on n0; 1 on n1; else not on n2" in text


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["cluster.min_workers=3", "actors.num_workers=2"], "cluster.min_workers"),
        (["cluster.service_replicas=2", "annotator.address=host:1"], "cluster.service_replicas"),
        (["service.device=cuda"], "service.device"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_config(overrides=settings)
