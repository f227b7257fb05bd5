import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.on_ray import nodes as ray_placement
from cluster.on_ray.placement import DoesNotFit, Interrupted, Node, Request, plan, shortage, table, wait_for_room
from configs.checks import ConfigError
from configs.loading import load_config, preset_names
from configs.schema import ActorsConfig, ClusterConfig


def nodes(*shapes: tuple[float, float]) -> list[Node]:
    """Nodes n0, n1, ... of (CPUs, GPUs)."""
    return [Node(id=f"n{index}", cpus=cpus, gpus=gpus) for index, (cpus, gpus) in enumerate(shapes)]


def connect(
    workers: int, *there: Node, needs_service: bool = True, may_grow: bool = True, **settings: float
) -> dict[str, Request]:
    cluster = ClusterConfig(mode="connect", **settings)  # type: ignore[arg-type]
    actors = ActorsConfig(num_workers=workers)
    return plan(cluster, actors, needs_annotator=True, needs_service=needs_service, nodes=there, may_grow=may_grow)


def test_a_laptop_runs_everything_on_fractions_that_fit() -> None:
    requests = plan(ClusterConfig(mode="local"), ActorsConfig(num_workers=3), needs_annotator=True, nodes=nodes((2, 0)))
    total = sum(request.cpus * request.count for request in requests.values())
    assert 1.99 < total <= 2
    assert requests["worker"].cpus == pytest.approx(requests["learner"].cpus)
    assert requests["worker"].count == 3


def test_replicas_shrink_with_the_rest_of_a_laptop() -> None:
    requests = plan(
        ClusterConfig(mode="local", service_replicas=2),
        ActorsConfig(num_workers=3),
        needs_annotator=True,
        nodes=nodes((2, 0)),
    )
    assert requests["replica"].count == 2
    assert 1.99 < sum(request.cpus * request.count for request in requests.values()) <= 2
    assert not any(request.homes or request.avoid for request in requests.values())  # there is one node to go to


def test_a_roomy_machine_gives_what_is_asked() -> None:
    cluster = ClusterConfig(mode="local", worker_gpus=0.25)
    requests = plan(cluster, ActorsConfig(num_workers=4), needs_annotator=True, nodes=nodes((16, 2)))
    assert (requests["worker"].cpus, requests["learner"].gpus, requests["annotator"].cpus) == (1.0, 1.0, 0.5)
    assert requests["worker"].gpus == 0.25


def test_workers_share_the_node_of_their_inference_actor() -> None:
    def place(num_workers: int, *there: Node) -> dict[str, Request]:
        cluster = ClusterConfig(mode="connect", inference_actors=2, inference_gpus=1, learner_gpus=0)
        actors = ActorsConfig(num_workers=num_workers, inference="central")
        return plan(cluster, actors, needs_annotator=False, nodes=there, may_grow=True)

    there = nodes((8, 0), (5, 1), (4, 1))
    requests = place(6, *there)
    assert requests["inference"] == Request(cpus=1, gpus=1, count=2, homes=("n1", "n2"))
    assert requests["worker"].homes == ("n1", "n2") * 3
    assert requests["worker"].avoid == ()
    with pytest.raises(DoesNotFit, match=r"no room for 1 x worker"):
        place(8, *there)  # though the node without a GPU has room
    with pytest.raises(DoesNotFit, match=r"no room for 1 x inference \(1 CPU, 1 GPU\), 3 x worker"):
        place(6, *nodes((8, 0), (5, 1)))


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


def test_learners_share_a_node_where_one_fits_all_and_workers_avoid_the_nodes_of_all() -> None:
    together = connect(2, *nodes((8, 1), (8, 4), (8, 2)), num_learners=2)["learner"]
    assert together == Request(cpus=1, gpus=1, count=2, homes=("n2", "n2"))
    apart = connect(2, *nodes((8, 1), (8, 1), (8, 0), (2, 0)), num_learners=2)
    assert apart["learner"].homes == ("n0", "n1")
    assert set(apart["worker"].homes) == {"n2", "n3"}
    assert apart["worker"].avoid == ("n0", "n1")
    without_gpus = connect(4, *nodes((2, 0), (2, 0), (3, 0), (3, 0)), num_learners=2, learner_cpus=2)
    assert without_gpus["worker"].avoid == ("n0", "n1")
    assert "learner       2 x       2 CPU     0 GPU  1 on n0; 1 on n1" in table(without_gpus)


def test_learners_share_gpus_where_there_are_fewer_and_what_has_no_room_is_named() -> None:
    assert connect(1, *nodes((8, 1)), num_learners=2)["learner"].gpus == 0.5
    assert connect(1, *nodes((8, 3)), num_learners=4)["learner"].gpus == 0.5
    with pytest.raises(DoesNotFit, match=r"no room for 1 x learner \(1 CPU, 1 GPU\)"):
        connect(1, *nodes((8, 1)), num_learners=2, learner_gpus=1)


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


@pytest.mark.parametrize(
    ("config", "shape"), [({"mode": "connect"}, (2, 0)), ({"mode": "local", "learner_gpus": 2}, (64, 1))]
)
def test_what_cannot_fit_is_refused_with_a_table(config: dict, shape: tuple[float, float]) -> None:
    with pytest.raises(RuntimeError) as caught:
        plan(
            ClusterConfig(**config),
            ActorsConfig(num_workers=8),
            needs_annotator=True,
            nodes=nodes(shape),
            may_grow=True,
        )
    message = str(caught.value)
    assert "8 x" in message
    assert "The cluster has" in message
    assert "actors.num_workers" in message


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("mode", ["local", "connect"])
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_as_it_is_fits_a_small_cluster_that_cannot_grow(preset: str, mode: str, cpus: int) -> None:
    config = load_config(
        preset=preset, overrides=[f"cluster.mode={mode}", "run_dir=/shared/run", "learner.max_policy_lag=20"]
    )
    needs_annotator = config.reward_model.name != "none"
    requests = plan(config.cluster, config.actors, needs_annotator=needs_annotator, nodes=nodes((cpus, 0)))
    asked = 1 + 0.5 * needs_annotator + config.actors.num_workers
    total = sum(request.cpus * request.count for request in requests.values())
    assert total == pytest.approx(min(asked, cpus), abs=0.01)
    assert total <= cpus
    assert requests["learner"].cpus == pytest.approx(min(1, cpus / asked), abs=0.001)
    words = shortage(config.cluster, requests)
    assert (words is None) == (asked <= cpus)
    if words is not None:
        assert f"ask for {asked:g} CPU" in words
        assert "\n" not in words


def test_an_actor_finds_one_node_for_its_share() -> None:
    requests = connect(
        1, *nodes((1, 0), (1, 0)), may_grow=False
    )  # 2.5 CPU, but two halves are no place for the third actor
    assert 0.6 < requests["worker"].cpus < 0.7
    assert {requests["learner"].homes[0], requests["worker"].homes[0]} == {"n0", "n1"}
    fits = connect(1, *nodes((1, 0), (2, 0)), may_grow=False)
    assert [fits[part].cpus for part in ("learner", "annotator", "worker")] == [1, 0.5, 1]


def test_what_shrinking_does_not_help_is_refused_at_once() -> None:
    with pytest.raises(DoesNotFit, match="no room for 1 x learner") as caught:
        connect(1, *nodes((1, 0)), learner_gpus=1, may_grow=False)
    assert caught.value.missing["learner"].cpus == 1, "it says what was asked"
    with pytest.raises(DoesNotFit, match="0 CPU and 0 GPU"):
        connect(1, *nodes((0, 0)), may_grow=False)


def test_workers_that_need_not_fit_now_shrink_nothing() -> None:
    requests = connect(8, *nodes((4.5, 0)), min_workers=2, may_grow=False)
    assert requests["worker"].cpus == 1


class Small:
    """A cluster of given nodes as `ray_placement.place` sees it, which waits on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, has_autoscaler: bool | None, *there: Node) -> None:
        self.now, self.said = 0.0, list[str]()
        self.asked: list[list[dict[str, float]]] = []
        monkeypatch.setattr(ray_placement, "nodes", lambda: list(there))
        monkeypatch.setattr(ray_placement, "_ask_autoscaler", self.asked.append)
        monkeypatch.setattr(ray_placement, "_has_autoscaler", lambda: has_autoscaler)
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def place(self, *settings: str, is_restart: bool = False) -> dict[str, Request]:
        config = load_config(
            preset="nethack_score", overrides=["cluster.mode=connect", "run_dir=/shared/run", *settings]
        )
        return ray_placement.place(config, True, self.said.append, lambda: False, is_restart=is_restart)


@pytest.mark.parametrize(("has_autoscaler", "setting"), [(False, "auto"), (True, "never"), (None, "auto")])
def test_the_readmes_job_runs_at_once_on_two_cpus_to_which_none_will_be_added(
    has_autoscaler: bool | None, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Small(monkeypatch, has_autoscaler, *nodes((2, 0)))
    assert cluster.place(f"cluster.more_nodes={setting}")["worker"].cpus == 0.8
    assert cluster.said == [
        "the parts ask for 2.5 CPU, more than the cluster has or will get: each gets its share,"
        " 1 x learner (0.8 CPU), 1 x annotator (0.4 CPU), 1 x worker (0.8 CPU)"
    ]
    assert cluster.now <= ray_placement.AUTOSCALER_PATIENCE_S + 1


@pytest.mark.parametrize(("has_autoscaler", "setting"), [(True, "auto"), (False, "expected")])
def test_where_nodes_may_join_they_are_waited_for_as_long_as_it_says(
    has_autoscaler: bool, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Small(monkeypatch, has_autoscaler, *nodes((2, 0)))
    with pytest.raises(DoesNotFit, match="no room for 1 x worker"):
        cluster.place(f"cluster.more_nodes={setting}", "cluster.placement_timeout_s=60")
    assert cluster.now == 60
    assert cluster.said[0].startswith("waiting for 1 x worker (1 CPU), 0 s")
    assert cluster.asked[-1] == []


@pytest.mark.parametrize(
    ("types", "version", "report", "found"),
    [
        (["node_" + "0f" * 28], "0", None, None),
        (["node_" + "0f" * 28], "0", {"autoscaler_report": {"active_nodes": {"node_" + "0f" * 28: 1}}}, False),
        (["node_" + "0f" * 28], "7", None, False),
        (["node_" + "0f" * 28], "0", {"load_metrics_report": {}}, None),
        (["ray.head.default"], "0", None, True),
        (["node_" + "0f" * 28, "gpu"], "7", None, True),
        (["node_" + "0f" * 28], "0", {"autoscaler_report": {"active_nodes": {"small-group": 1}}}, True),
    ],
)
def test_an_autoscaler_is_known_by_the_types_of_its_nodes(
    types: list[str], version: str, report: Any, found: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [SimpleNamespace(ray_node_type_name=name) for name in types]
    status = SimpleNamespace(
        active_nodes=named[:1], idle_nodes=named[1:], stats=SimpleNamespace(autoscaler_version=version)
    )
    monkeypatch.setattr(ray_placement.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    monkeypatch.setattr(ray_placement, "get_cluster_status", lambda address: status)
    monkeypatch.setattr(ray_placement, "_internal_kv_get", lambda key: json.dumps(report).encode() if report else None)
    assert ray_placement._has_autoscaler() is found


def test_a_ray_that_cannot_be_asked_has_no_known_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str) -> None:
        raise RuntimeError("unknown method")

    monkeypatch.setattr(ray_placement.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    monkeypatch.setattr(ray_placement, "get_cluster_status", refuse)
    assert ray_placement._has_autoscaler() is None


def test_what_can_never_fit_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Small(monkeypatch, False, *nodes((2, 0)))
    with pytest.raises(DoesNotFit, match=r"learner +1 x +1 CPU +1 GPU"):
        cluster.place("cluster.learner_gpus=1")
    assert (cluster.now, cluster.said, cluster.asked) == (0, [], [])


def test_after_a_restart_a_lost_node_is_waited_for_before_requests_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Small(monkeypatch, False, *nodes((2, 0)))
    assert cluster.place("cluster.placement_timeout_s=30", is_restart=True)["learner"].cpus == 0.8
    assert cluster.now == 30


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
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.monotonic", lambda: self.now)
            patch.setattr("time.sleep", self.sleep)
            return wait_for_room(
                lambda there: connect(4, *there, **settings),
                self.nodes,
                self.asked.append,
                timeout_s=timeout_s,
                say=self.said.append,
                stop_requested=lambda: self.now >= stop_at,
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
