"""Versions in mid-flight, and what becomes of server and workers when one of them dies or hangs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actors.central import server as central_server
from actors.central.client import CentralInference
from actors.inference import BatchedInference
from tests.actors.central.small_node import (
    ACTORS,
    CORRIDOR,
    NUM_ENVS,
    SmallNode,
    central_worker,
    make_client,
    make_net,
    spec_of,
    weights,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SmallNode]:
    made = SmallNode(tmp_path / "socket", num_workers=3)
    yield made
    made.close()


@pytest.fixture
def players(node: SmallNode) -> Iterator["list[Player]"]:
    made = [Player(node, place) for place in range(3)]
    yield made
    for player in made:
        player.client.close()


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(started: list[subprocess.Popen], role: str, path: Path) -> subprocess.Popen:
    """A server or a worker as a process of its own, once it plays."""
    command = [sys.executable, "-m", "tests.actors.central.small_node", role, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


class Player:
    """A connection that asks about the same observations again and again, beside a policy of its own."""

    def __init__(self, node: SmallNode, place: int) -> None:
        self.client, spec = make_client(node.path, place=place), spec_of(CORRIDOR)
        self.own = BatchedInference(make_net(spec), spec, NUM_ENVS, ACTORS)
        rng = np.random.default_rng(place)
        self.obs = {
            name: rng.integers(0, 2, (NUM_ENVS, *entry.shape)).astype(entry.dtype)
            for name, entry in spec.observations.items()
        }
        self._rollout = self.client.rollout(1)

    def begin(self) -> int:
        """Start a rollout; its version's number."""
        self._rollout = self.client.rollout(1)
        self._rollout.__enter__()
        assert self.client.policy_version is not None
        number = self.client.policy_version[1]
        self.own.load(weights(number))
        return number

    def play(self) -> None:
        """One step under the version of the rollout."""
        with self.own.rollout(1):
            logits, values = self.own.step(self.obs)
        parts = [slice(0, 3), slice(3, NUM_ENVS)]
        for part, rows in enumerate(parts):
            self.client.ask(part, {name: array[rows] for name, array in self.obs.items()})
        for part, rows in reversed([*enumerate(parts)]):
            theirs = self.client.answer(part)
            np.testing.assert_allclose(theirs[0], logits[rows], atol=1e-5)
            np.testing.assert_allclose(theirs[1], values[rows], atol=1e-5)

    def end(self) -> None:
        """Complete the rollout."""
        self._rollout.__exit__(None, None, None)


def test_a_rollout_keeps_its_version_and_new_ones_get_the_newest_unless_two_run(
    node: SmallNode, players: list[Player]
) -> None:
    node.load(0)
    assert players[0].begin() == 0
    players[0].play()
    node.load(1)
    assert players[1].begin() == 1
    node.load(2)
    node.load(3)
    assert players[2].begin() == 1, "three versions at once would be batches of one worker each"
    for player in players:
        player.play()
    players[0].end()
    assert players[0].begin() == 3
    for _ in range(2):
        for player in players:
            player.play()
    for player in players:
        player.end()
    assert [player.begin() for player in players] == [3, 3, 3]


def test_a_worker_that_stands_still_keeps_its_version_and_delays_nobodys(
    node: SmallNode, players: list[Player], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(central_server, "PATIENCE_S", -1.0)
    for number, player in enumerate(players):
        node.load(number)
        assert player.begin() == number
    for _ in range(2):
        for player in players:
            player.play()
    players[1].end()
    players[1].client.core_state()  # answered after the end of the rollout, which is not
    assert set(node.server._snapshots) == {(1, 0), (1, 2)}, "a version that nobody needs is not kept"


def test_a_killed_worker_is_dropped_and_its_successor_begins_with_states_of_zero(
    tmp_path: Path, node: SmallNode, started: list[subprocess.Popen]
) -> None:
    before = set(os.listdir("/dev/shm"))
    node.load(0)
    other = node.worker(0)
    victim = start(started, "work", node.path)  # place 1
    other.collect(None, None)
    victim.kill()
    victim.wait()
    for _ in range(3):
        other.collect(None, None)
    client = make_client(node.path, place=1)
    assert len(node.server._clients) == 2
    with client.rollout(1):
        assert not any(array.any() for array in client.core_state().values())
    client.close()
    assert set(os.listdir("/dev/shm")) <= before
    assert os.listdir(tmp_path) == ["socket"]


def test_workers_of_a_killed_server_fail_at_once_in_one_line_and_nothing_is_left(
    tmp_path: Path, started: list[subprocess.Popen]
) -> None:
    before, path = set(os.listdir("/dev/shm")), tmp_path / "socket"
    server = start(started, "serve", path)
    worker = central_worker(path, 0)
    try:
        worker.collect(None, None)
        server.kill()
        server.wait()
        with pytest.raises(RuntimeError, match=rf"^the inference server at {path} has ended( \(.*\))?$"):
            worker.collect(None, None)
        with pytest.raises(RuntimeError, match=rf"^the inference server at {path} has ended \(Connection refused\)$"):
            make_client(path)
    finally:
        worker.close()
    assert set(os.listdir("/dev/shm")) <= before


def test_a_hung_server_is_waited_for_no_longer_than_said(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    path = tmp_path / "socket"
    server = start(started, "serve", path)
    worker = central_worker(path, 0, timeout_s=0.5)
    try:
        worker.collect(None, None)
        server.send_signal(signal.SIGSTOP)
        with pytest.raises(RuntimeError, match=r"has not answered within 0\.5 s$"):
            worker.collect(None, None)
    finally:
        worker.close()


def test_a_worker_of_another_size_or_number_is_refused_and_one_of_the_same_number_takes_the_place(
    node: SmallNode,
) -> None:
    node.load(0)
    with pytest.raises(RuntimeError, match=r"refuses the worker: got .*'rows': \[2, 2\].*, wanted one of 3 workers"):
        CentralInference(node.path, spec_of(CORRIDOR), 4, place=0, timeout_s=20)
    with pytest.raises(RuntimeError, match=r"refuses the worker: got .*'place': 3"):
        make_client(node.path, place=3)
    first, second = make_client(node.path), make_client(node.path)
    with pytest.raises(RuntimeError, match="has ended"), first.rollout(1):
        pass
    with second.rollout(1):
        assert second.policy_version == (1, 0)
    first.close()
    second.close()
