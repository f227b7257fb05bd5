"""What a worker and its inference server share: for each part of the worker's environments memory with observations,
results and states, and the messages that hand it over.

Invariant: a part's memory belongs to one side at a time, and a message, which also wakes the other side, passes it on.
The memory has no name, so the kernel frees it with the last process that has it, however that process ends.
"""

import math
import mmap
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from actors.environments.vector import ArraySpec, EnvironmentSpec

SOCKET = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
"""Packets keep their bounds, and the end of either process ends the connection."""
MAX_PACKET_BYTES = 65_536
ALIGNMENT = 64


class Kind(IntEnum):
    """A request, sent as the packet (kind, part). Each but END is answered by the packet (part,). All first zero the
    core states of the part's rows that are marked in `resets`."""

    BEGIN = 0
    """Start a rollout: `version` is that of all steps until END. Answered once the server has weights."""
    STEP = 1
    """`outputs` for `obs`; the core states advance."""
    VALUES = 2
    """`values` of the first `num_rows` of `last_obs`, with the core states of the environments `rows`."""
    SAVE = 3
    """Copy the core states to `core`."""
    LOAD = 4
    """Replace the core states by `core`."""
    END = 5
    """The rollout is complete; its version is no longer needed."""


@dataclass(slots=True, kw_only=True, eq=False)
class Exchange:
    """The memory of one part, of R environments."""

    obs: dict[str, np.ndarray]  # name -> [R, ...]
    last_obs: dict[str, np.ndarray]  # name -> [R, ...]: last observations of truncated episodes
    core: dict[str, np.ndarray]  # name -> [R, H] f32
    outputs: np.ndarray  # [R, A + 1] f32: logits and value
    values: np.ndarray  # [R] f32
    rows: np.ndarray  # [R] i64
    num_rows: np.ndarray  # [1] i64
    resets: np.ndarray  # [R] bool
    version: np.ndarray  # [2] i64


def split_rows(num_envs: int) -> tuple[int, ...]:
    """The sizes of the parts of a worker's environments: two, so that one steps while the other is inferred."""
    return (num_envs - num_envs // 2, num_envs // 2) if num_envs > 1 else (num_envs,)


def new_memory(spec: EnvironmentSpec, part_rows: Sequence[int], core_sizes: Mapping[str, int]) -> int:
    """The file descriptor of zeroed memory for these parts; Linux only."""
    descriptor = os.memfd_create("delphi-inference")
    os.truncate(descriptor, sum(_size(_entries(spec, num_rows, core_sizes)) for num_rows in part_rows))
    return descriptor


def map_memory(
    descriptor: int, spec: EnvironmentSpec, part_rows: Sequence[int], core_sizes: Mapping[str, int]
) -> list[Exchange]:
    """The parts of memory made by `new_memory` with the same arguments; the descriptor is closed."""
    try:
        memory = mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)
    parts, offset = [], 0
    for num_rows in part_rows:
        entries = _entries(spec, num_rows, core_sizes)
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for (group, name), entry in entries.items():
            array = np.frombuffer(memory, entry.dtype, math.prod(entry.shape), offset).reshape(entry.shape)
            arrays.setdefault(group, {})[name] = array
            offset += _aligned_bytes(entry)
        single = arrays.pop("single")
        parts.append(Exchange(obs=arrays["obs"], last_obs=arrays["last_obs"], core=arrays.get("core", {}), **single))
    return parts


def _entries(spec: EnvironmentSpec, num_rows: int, core_sizes: Mapping[str, int]) -> dict[tuple[str, str], ArraySpec]:
    """(group, name) -> the array of one part, in the order of their places."""
    f32, i64 = np.dtype(np.float32), np.dtype(np.int64)
    entries = {
        (group, name): ArraySpec(shape=(num_rows, *array.shape), dtype=array.dtype)
        for group in ("obs", "last_obs")
        for name, array in spec.observations.items()
    }
    entries |= {("core", name): ArraySpec(shape=(num_rows, size), dtype=f32) for name, size in core_sizes.items()}
    single = {
        "outputs": ArraySpec(shape=(num_rows, spec.num_actions + 1), dtype=f32),
        "values": ArraySpec(shape=(num_rows,), dtype=f32),
        "rows": ArraySpec(shape=(num_rows,), dtype=i64),
        "num_rows": ArraySpec(shape=(1,), dtype=i64),
        "resets": ArraySpec(shape=(num_rows,), dtype=np.dtype(bool)),
        "version": ArraySpec(shape=(2,), dtype=i64),
    }
    return entries | {("single", name): entry for name, entry in single.items()}


def _aligned_bytes(entry: ArraySpec) -> int:
    return -(-math.prod(entry.shape) * entry.dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _size(entries: Mapping[tuple[str, str], ArraySpec]) -> int:
    return sum(map(_aligned_bytes, entries.values()))
