"""The inference server of a node: answers the requests of its workers, several in one batch.

    a request    is answered
    STEP         in the next batch of its version, with whatever other steps are asked by then
    BEGIN        once there are weights, with the version that new rollouts get
    others       at once

New rollouts get the newest version, unless rollouts under two versions run already: then the batches would become too
small. A worker that has asked nothing for PATIENCE_S is left out of that count; its version is kept for it.

Invariant: a rollout is computed under one version from BEGIN to END, whatever arrives meanwhile. A worker that ends
takes its requests with it and disturbs no other; the end of the server ends all connections.
"""

import contextlib
import json
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actors.central.exchange import MAX_PACKET_BYTES, SOCKET, Kind, map_memory, new_memory, split_rows
from actors.central.joined import JoinedInference, Share
from actors.environments.vector import EnvironmentSpec
from actors.policy import PolicyNet, PolicySnapshot
from actors.rollout import Version
from configs.schema import ActorsConfig

IDLE_S = 0.5
"""The longest time between two values of `InferenceServer.turned_at` while nothing is asked."""
PATIENCE_S = 1.0
NUM_VERSIONS = 2
"""Versions for which the policy is ready to be computed."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Client:
    """A connected worker."""

    socket: socket.socket
    place: int = -1
    """Its number; -1 until it has said it."""
    shares: list[Share] = field(default_factory=list)
    version: Version | None = None
    """Of its rollout; None between rollouts."""
    asked_at: float = 0.0


class _Step(NamedTuple):
    client: _Client
    part: int


class InferenceServer:
    """One process's policy for `num_workers` workers of `config.envs_per_worker` environments each."""

    def __init__(
        self,
        path: Path,
        make_net: Callable[[], PolicyNet],
        spec: EnvironmentSpec,
        config: ActorsConfig,
        *,
        num_workers: int,
        pads: bool | None = None,
    ) -> None:
        """Listens at `path`, a UNIX socket. `pads`: see `JoinedInference`. Raises ValueError for a device that does not
        exist, and OSError where it cannot listen."""
        self.turned_at = time.monotonic()
        """When it last looked for requests."""
        self._spec, self._num_workers, self._num_envs = spec, num_workers, config.envs_per_worker
        self._part_rows = split_rows(self._num_envs)
        self._batch_rows = num_workers * max(self._part_rows)
        make = partial(
            JoinedInference,
            spec=spec,
            config=config,
            batch_rows=self._batch_rows,
            state_rows=num_workers * self._num_envs,
            pads=pads,
        )
        first = make(make_net())
        others = [make(make_net(), beside=first) for _ in range(NUM_VERSIONS - 1)]
        self._policies: list[JoinedInference] = [first, *others]  # the one that was not used for longest first
        self._newest: PolicySnapshot | None = None
        self._goal_vectors: np.ndarray | None = None
        self._used_vectors: np.ndarray | None = None
        self._current: Version | None = None  # of new rollouts
        self._snapshots: dict[Version, PolicySnapshot] = {}
        self._clients: list[_Client] = []
        self._steps: deque[_Step] = deque()
        self._beginning: list[_Client] = []
        self._is_stopping = False
        self._path = path
        path.unlink(missing_ok=True)
        self._listener = socket.socket(*SOCKET)
        self._listener.bind(str(path))
        self._listener.listen(num_workers)
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: self._woken.recv(MAX_PACKET_BYTES))

    def load(self, snapshot: PolicySnapshot) -> None:
        """Set the newest version; from any thread."""
        self._newest = snapshot
        self._wake()

    def load_goals(self, vectors: np.ndarray) -> None:
        """Set the goal vectors [G, D] that whatever is asked from now on is computed with; from any thread."""
        self._goal_vectors = vectors
        self._wake()

    def stop(self) -> None:
        """End `serve`; from any thread."""
        self._is_stopping = True
        self._wake()

    def serve(self) -> None:
        """Answer requests until `stop`, and close all connections."""
        try:
            while not self._is_stopping:
                self._turn()
        finally:
            self._close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it has been woken often enough, or has ended
            self._waker.send(b"!")

    def _turn(self) -> None:
        events = self._selector.select(0.0 if self._steps else IDLE_S)
        vectors = self._goal_vectors
        if vectors is not None and vectors is not self._used_vectors:
            self._used_vectors = vectors
            for policy in self._policies:
                policy.load_goals(vectors)
        for key, _ in events:
            key.data()
        self.turned_at = time.monotonic()
        self._begin_rollouts()
        if self._steps:
            self._answer(self._next_batch())

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        client = _Client(socket=connection)
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, partial(self._hear, client))

    def _hear(self, client: _Client) -> None:
        if client not in self._clients:  # dropped since the selector found its packet
            return
        try:
            packet = client.socket.recv(MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._drop(client)
        elif client.place < 0:
            self._greet(client, packet)
        else:
            self._take(client, Kind(packet[0]), packet[1])

    def _greet(self, client: _Client, packet: bytes) -> None:
        """Share new memory with a worker; an earlier connection of its number ends."""
        hello = json.loads(packet)
        if tuple(hello["rows"]) != self._part_rows or not 0 <= hello["place"] < self._num_workers:
            wanted = f"wanted one of {self._num_workers} workers with environments {list(self._part_rows)}"
            with contextlib.suppress(OSError):
                client.socket.send(json.dumps({"error": f"got {hello}, {wanted}"}).encode())
            self._drop(client)
            return
        for other in [other for other in self._clients if other.place == hello["place"]]:
            self._drop(other)
        core_sizes = self._policies[0].core_sizes
        memory = self._spec, self._part_rows, core_sizes
        descriptor = new_memory(*memory)
        with contextlib.suppress(OSError):  # it has gone, which the next packet says
            socket.send_fds(client.socket, [json.dumps({"core": core_sizes}).encode()], [descriptor])
        client.place = hello["place"]
        first_row = client.place * self._num_envs
        for exchange in map_memory(descriptor, *memory):
            client.shares.append(Share(first_row, exchange))
            first_row += len(exchange.outputs)
            exchange.resets[:] = True  # the states are those of the number's last worker

    def _take(self, client: _Client, kind: Kind, part: int) -> None:
        client.asked_at = self.turned_at
        if kind is Kind.STEP:
            self._steps.append(_Step(client, part))
            return
        if kind is Kind.BEGIN:
            self._beginning.append(client)
            return
        if kind is Kind.END:
            self._release(client)
            return
        share, policy = client.shares[part], self._policies[0]
        policy.reset_marked([share])
        if kind is Kind.VALUES:
            policy = self._policy_of(client)
            with policy.computing():
                policy.values_of(share)
        elif kind is Kind.SAVE:
            policy.save(share)
        else:
            policy.load_states(share)
        self._reply(client, part)

    def _begin_rollouts(self) -> None:
        if not self._beginning:
            return
        self._promote()
        if self._current is None:
            return
        beginning, self._beginning = self._beginning, []
        for client in beginning:
            client.version = self._current
            client.shares[0].exchange.version[:] = self._current
            self._reply(client, 0)

    def _promote(self) -> None:
        """Give new rollouts the newest version, unless rollouts under two versions run."""
        newest = self._newest
        if newest is None or newest.policy_version == self._current:
            return
        running = {client.version for client in self._clients if self.turned_at - client.asked_at < PATIENCE_S}
        if not running - {self._current, None}:
            self._current = newest.policy_version
            self._snapshots[self._current] = newest
            self._forget_snapshots()

    def _next_batch(self) -> list[_Step]:
        """The steps asked first that are of one version and fit into a batch."""
        version, room = self._steps[0].client.version, self._batch_rows
        batch, left = [], deque[_Step]()
        for step in self._steps:
            num_rows = self._part_rows[step.part]
            if step.client.version == version and num_rows <= room:
                room -= num_rows
                batch.append(step)
            else:
                left.append(step)
        self._steps = left
        return batch

    def _answer(self, batch: Sequence[_Step]) -> None:
        policy = self._policy_of(batch[0].client)
        with policy.computing():
            policy.step_joined([client.shares[part] for client, part in batch])
        for client, part in batch:
            self._reply(client, part)

    def _policy_of(self, client: _Client) -> JoinedInference:
        """The policy with the weights of the client's rollout."""
        assert client.version is not None, "a step outside BEGIN and END"
        policy = next((policy for policy in self._policies if policy.policy_version == client.version), None)
        if policy is None:
            policy = self._policies[0]
            policy.load(self._snapshots[client.version])
        self._policies.remove(policy)
        self._policies.append(policy)
        return policy

    def _reply(self, client: _Client, part: int) -> None:
        with contextlib.suppress(OSError):  # it has gone, which the next packet says
            client.socket.send(bytes((part,)))

    def _release(self, client: _Client) -> None:
        client.version = None
        self._forget_snapshots()

    def _forget_snapshots(self) -> None:
        needed = {self._current, *(client.version for client in self._clients)}
        self._snapshots = {version: snapshot for version, snapshot in self._snapshots.items() if version in needed}

    def _drop(self, client: _Client) -> None:
        self._selector.unregister(client.socket)
        client.socket.close()
        self._clients.remove(client)
        self._steps = deque(step for step in self._steps if step.client is not client)
        self._beginning = [other for other in self._beginning if other is not client]
        self._release(client)

    def _close(self) -> None:
        self._path.unlink(missing_ok=True)
        self._selector.close()
        for each in (self._listener, self._waker, self._woken, *(client.socket for client in self._clients)):
            each.close()
