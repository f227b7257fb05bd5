import pytest

from cluster.placement import plan
from configs.schema import ActorsConfig, ClusterConfig


def test_a_laptop_runs_everything_on_fractions_that_fit() -> None:
    requests = plan(ClusterConfig(mode="local"), ActorsConfig(num_workers=3), needs_annotator=True, resources={"CPU": 2})
    total = sum(request.cpus * request.count for request in requests.values())
    assert 1.99 < total <= 2
    assert requests["worker"].cpus == pytest.approx(requests["learner"].cpus)
    assert requests["worker"].count == 3


def test_a_roomy_machine_gives_what_is_asked() -> None:
    cluster = ClusterConfig(mode="local", worker_gpus=0.25)
    requests = plan(cluster, ActorsConfig(num_workers=4), needs_annotator=True, resources={"CPU": 16, "GPU": 2})
    assert (requests["worker"].cpus, requests["learner"].gpus, requests["annotator"].cpus) == (1.0, 1.0, 0.5)
    assert requests["worker"].gpus == 0.25


def test_without_judgements_no_annotator_is_placed() -> None:
    assert "annotator" not in plan(ClusterConfig(), ActorsConfig(), needs_annotator=False, resources={"CPU": 2})


@pytest.mark.parametrize(
    ("config", "resources"), [({"mode": "connect"}, {"CPU": 2}), ({"mode": "local", "learner_gpus": 2}, {"CPU": 64, "GPU": 1})]
)
def test_what_cannot_fit_is_refused_with_a_table(config: dict, resources: dict) -> None:
    with pytest.raises(RuntimeError) as caught:
        plan(ClusterConfig(**config), ActorsConfig(num_workers=8), needs_annotator=True, resources=resources)
    message = str(caught.value)
    assert "8 x" in message
    assert "the cluster has" in message
    assert "actors.num_workers" in message
