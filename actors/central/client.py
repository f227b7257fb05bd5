"""A worker's side of central inference: the methods of `BatchedInference`, computed by the inference server of its
node.

Invariant: a rollout's steps are all answered under the version that its beginning was given; a server that ends, or
does not answer in time, is one RuntimeError and never a wait without end. Nothing here imports torch.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actors.central.exchange import MAX_PACKET_BYTES, SOCKET, Exchange, Kind, map_memory, split_rows
from actors.environments.vector import EnvironmentSpec
from actors.rollout import Version

if TYPE_CHECKING:
    from actors.policy import PolicySnapshot


class CentralInference:
    """One worker's connection."""

    def __init__(self, path: Path, spec: EnvironmentSpec, num_envs: int, *, place: int, timeout_s: float) -> None:
        """Connects to the server at `path` as its worker number `place`, in place of an earlier connection of that
        number; `timeout_s` bounds every wait. Raises RuntimeError for a server that is gone or refuses."""
        self.policy_version: Version | None = None
        self._path, self._timeout_s = path, timeout_s
        self._pending: set[int] = set()
        self._part_rows = split_rows(num_envs)
        self._first_rows = np.cumsum([0, *self._part_rows])
        self._socket = socket.socket(*SOCKET)
        try:
            self._parts = self._join(spec, place)
        except BaseException:
            self._socket.close()
            raise

    def _join(self, spec: EnvironmentSpec, place: int) -> list[Exchange]:
        """Connect; the memory that the server shares."""
        self._socket.settimeout(self._timeout_s)
        with self._speaking():
            self._socket.connect(str(self._path))
            self._socket.send(json.dumps({"place": place, "rows": self._part_rows}).encode())
            packet, descriptors, _, _ = socket.recv_fds(self._socket, MAX_PACKET_BYTES, 1)
        answer = json.loads(self._checked(packet))
        if "error" in answer:
            raise RuntimeError(f"the inference server at {self._path} refuses the worker: {answer['error']}")
        return map_memory(descriptors[0], spec, self._part_rows, answer["core"])

    def load(self, snapshot: "PolicySnapshot") -> None:
        """RuntimeError: the server has the weights, and decides about the version of a rollout."""
        raise RuntimeError("collect was given a policy snapshot, but the inference server has the policy; give None")

    def load_goals(self, vectors: np.ndarray) -> None:
        """Nothing: the server had them before its workers got their sheet."""

    @contextlib.contextmanager
    def rollout(self, num_steps: int) -> Iterator[None]:
        """Context for the steps of one rollout; sets `policy_version`."""
        self._request(Kind.BEGIN, 0)
        self._wait(0)
        run_epoch, number = self._parts[0].version.tolist()
        self.policy_version = run_epoch, number
        yield
        self._send(Kind.END, 0)

    def ask(self, part: int, obs: Mapping[str, np.ndarray]) -> None:
        """Send observations name -> [R, ...] of a part; `answer` has the results."""
        for name, array in obs.items():
            np.copyto(self._parts[part].obs[name], array)
        self._request(Kind.STEP, part)

    def answer(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits [R, A] and values [R] f32 of what was asked last about this part, valid until it is asked again."""
        self._wait(part)
        outputs = self._parts[part].outputs
        return outputs[:, :-1], outputs[:, -1]

    def values(self, obs: Mapping[str, np.ndarray], rows: Sequence[int]) -> np.ndarray:
        """Values [N] f32 of other observations name -> [N, ...], with the core states of the environments `rows`, all
        of one part that is not asked at the moment."""
        part, places = self._place(rows)
        exchange, num_rows = self._parts[part], len(rows)
        exchange.num_rows[0] = num_rows
        exchange.rows[:num_rows] = places
        for name, array in obs.items():
            exchange.last_obs[name][:num_rows] = array
        self._request(Kind.VALUES, part)
        self._wait(part)
        return exchange.values[:num_rows].copy()

    def reset(self, rows: Sequence[int]) -> None:
        """Zero the core state of the environments `rows`, of one part that is not asked at the moment."""
        if rows:
            part, places = self._place(rows)
            self._parts[part].resets[places] = True

    def core_state(self) -> dict[str, np.ndarray]:
        """A copy of the core state, name -> [B, H] f32; not while a part is asked."""
        if self._parts[0].core:
            self._request_all(Kind.SAVE)
        return {name: np.concatenate([exchange.core[name] for exchange in self._parts]) for name in self._parts[0].core}

    def load_core_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a copy made by `core_state`."""
        for exchange, first in zip(self._parts, self._first_rows, strict=False):
            for name, array in exchange.core.items():
                array[:] = state[name][first : first + len(array)]
        self._request_all(Kind.LOAD)

    def close(self) -> None:
        """Leave the server."""
        self._socket.close()

    def _place(self, rows: Sequence[int]) -> tuple[int, np.ndarray]:
        """The part of the environments `rows`, and their numbers in it."""
        part = int(np.searchsorted(self._first_rows, rows[0], side="right")) - 1
        return part, np.asarray(rows) - self._first_rows[part]

    def _request_all(self, kind: Kind) -> None:
        for part in range(len(self._parts)):
            self._request(kind, part)
        for part in range(len(self._parts)):
            self._wait(part)

    def _request(self, kind: Kind, part: int) -> None:
        self._pending.add(part)
        self._send(kind, part)

    def _send(self, kind: Kind, part: int) -> None:
        with self._speaking():
            self._socket.send(bytes((kind, part)))

    def _wait(self, part: int) -> None:
        while part in self._pending:
            with self._speaking():
                packet = self._socket.recv(1)
            self._pending.discard(self._checked(packet)[0])

    def _checked(self, packet: bytes) -> bytes:
        if not packet:
            raise RuntimeError(f"the inference server at {self._path} has ended")
        return packet

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Errors of the socket in words."""
        try:
            yield
        except TimeoutError:
            late = f"the inference server at {self._path} has not answered within {self._timeout_s:g} s"
            raise RuntimeError(late) from None
        except OSError as error:
            gone = f"the inference server at {self._path} has ended ({os.strerror(error.errno or 0)})"
            raise RuntimeError(gone) from None
