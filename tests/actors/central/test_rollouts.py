"""Central inference against inference in the worker: the same games, the same random numbers, the same rollouts."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.rollout import CaptionReport, Rollout
from configs.schema import EnvConfig
from tests.actors.central.small_node import CORRIDOR, NUM_ENVS, SmallNode, weights, worker_alone
from tests.faults.faulty_environments import OnceBroken

FLOAT32 = 1e-5
"""Largest difference in float32: sums of products may be taken in another order for another batch size."""
Collected = tuple[Rollout, CaptionReport]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., SmallNode]]:
    nodes: list[SmallNode] = []

    def make(*arguments: Any, **options: Any) -> SmallNode:
        nodes.append(SmallNode(tmp_path / f"server-{len(nodes)}", *arguments, **options))
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


def assert_equal(one: Collected, other: Collected, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Equal but for rounding in float32, and for these fields."""
    assert one[1] == other[1]
    for name in set(Rollout.__slots__) - {"timings"} - but:
        assert_close(name, getattr(one[0], name), getattr(other[0], name))


def assert_close(name: str, left: Any, right: Any) -> None:
    if isinstance(left, Mapping):
        assert left.keys() == right.keys()
        for key in left:
            assert_close(f"{name}/{key}", left[key], right[key])
    elif isinstance(left, np.ndarray) and left.dtype == np.float32:
        np.testing.assert_allclose(left, right, atol=FLOAT32, err_msg=name)
    elif isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, right, err_msg=name)
    else:
        assert left == right, name


@pytest.mark.parametrize(("core", "pads"), [("lstm", False), ("lstm", True), ("gru", True), ("none", False)])
def test_rollouts_of_several_workers_are_those_of_workers_with_their_own_policy(
    make_node: Callable[..., SmallNode], core: str, pads: bool
) -> None:
    node = make_node(core, num_workers=3, pads=pads)
    central = [node.worker(index) for index in range(3)]
    own = [worker_alone(index, core) for index in range(3)]
    ends = {"truncated": 0, "terminated": 0}
    with ThreadPoolExecutor(3) as pool:
        for number in range(4):
            node.load(number)
            collected = [*pool.map(lambda worker: worker.collect(None, None), central)]
            for worker, theirs in zip(own, collected, strict=True):
                assert_equal(worker.collect(weights(number, core), None), theirs)
                for kind in ends:
                    ends[kind] += int(getattr(theirs[0], kind).sum())
    assert min(ends.values()) > 3, "or final values and resets were not compared"


def test_all_channels_are_those_of_a_worker_with_its_own_policy(make_node: Callable[..., SmallNode]) -> None:
    words = {"describer": "tests.toy_environments:describe", "action_names": ["back", "forward"]}
    numbers = ["info:success", "tests.actors.features.test_sources:two_of_the_corridor"]
    described = dataclasses.replace(CORRIDOR, **words, features=numbers)
    node, second = (make_node("lstm", described) for _ in range(2))
    worker, own = node.worker(0), worker_alone(0, env=described)
    for number in range(3):
        node.load(number)
        theirs = worker.collect(None, None)
        assert_equal(own.collect(weights(number, env=described), None), theirs)
        assert len(theirs[0].signals) == 10
        assert np.isfinite(theirs[0].signals["features"]).all()
        assert all(texts for texts, _ in theirs[1].channels.values())
    saved = worker.state_dict()
    second.load(2)
    successor = second.worker(0)
    successor.load_state_dict(saved)
    assert_equal(worker.collect(None, None), successor.collect(None, None), but={"environment_notices"})


def test_an_environment_that_fails_is_lost_alike(
    make_node: Callable[..., SmallNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(which: int) -> EnvConfig:
        """Where environment number `which`, in the order of their making from now on, fails."""
        monkeypatch.setattr(OnceBroken, "made", 0)
        options = {"which": which, "at_step": 5}
        return EnvConfig(id="tests.faults.faulty_environments:OnceBroken-v0", options=options, max_episode_steps=7)

    node = make_node("lstm", broken(-1))
    loaded = [weights(number, env=broken(-1)) for number in range(2)]
    own = worker_alone(0, env=broken(2))
    expected = [own.collect(each, None) for each in loaded]
    node.env = broken(2)
    worker = node.worker(0)
    for each, theirs in zip(loaded, expected, strict=True):
        node.server.load(each)
        assert_equal(theirs, worker.collect(None, None))
    assert [rollout.lost for rollout, _ in expected] == [(2,), ()]


def test_a_workers_state_is_saved_with_the_servers_core_states_and_continues_elsewhere(
    make_node: Callable[..., SmallNode],
) -> None:
    first, second = make_node(), make_node()
    for node in (first, second):
        node.load(0)
    worker = first.worker(0)
    worker.collect(None, None)
    saved = worker.state_dict()
    assert saved["env"]["exact"] is True
    assert all(array.any() and array.shape == (NUM_ENVS, 12) for array in saved["core"].values())
    successor = second.worker(0)
    successor.collect(None, None)
    successor.collect(None, None)
    successor.load_state_dict(saved)
    assert_equal(worker.collect(None, None), successor.collect(None, None), but={"worker_id"})


def test_a_snapshot_for_the_worker_itself_is_refused(make_node: Callable[..., SmallNode]) -> None:
    node = make_node()
    with pytest.raises(RuntimeError, match="the inference server has the policy"):
        node.worker(0).collect(node.load(0), None)
