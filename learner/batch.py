"""The training batch: rollouts joined along the environment axis, on the learner's device; and the memory of updates.

Invariant: every array is copied once on the host, into buffers that all updates reuse (pinned if a GPU copies from
them); the rollouts' own arrays, which may be read-only, are never written.
"""

import ctypes
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.rollout import Rollout

LOG = logging.getLogger(__name__)
STEP_FIELDS = ("actions", "behaviour_logits", "behaviour_values", "final_values", "terminated", "truncated")
"""Fields of `Rollout` and `Batch` with one entry per step: [T, B, ...]."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEPT_BYTES = 1 << 30
"""Freed bytes kept at the heap's end, and the size from which a block is mapped separately."""
THREAD_HEAP_BYTES = 64 << 20
"""Size of glibc's heaps of other threads than the main one, which are released once empty unless padded to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rollouts joined along the environment axis, B the sum of theirs (`BatchBuffers` -> update)."""

    obs: dict[str, Tensor]  # name -> [T+1, B, ...]
    actions: Tensor  # [T, B] i64
    behaviour_logits: Tensor  # [T, B, A] f32
    behaviour_values: Tensor  # [T, B] f32
    final_values: Tensor  # [T, B] f32, NaN except where truncated
    terminated: Tensor  # [T, B] bool
    truncated: Tensor  # [T, B] bool
    reset_before: Tensor
    """[T+1, B] bool, in host memory: whether the core is zeroed before obs[t]; the worker did it before obs[0]."""
    core_state: dict[str, Tensor]  # name -> [B, H] f32, before step 0

    def columns(self, indices: Tensor) -> "Batch":
        """A copy of the environments at `indices` [N] i64, in host memory."""
        on_device = indices.to(self.actions.device)
        return Batch(
            obs={name: tensor[:, on_device] for name, tensor in self.obs.items()},
            reset_before=self.reset_before[:, indices],
            core_state={name: tensor[on_device] for name, tensor in self.core_state.items()},
            **{name: getattr(self, name)[:, on_device] for name in STEP_FIELDS},
        )


def draw_minibatches(num_columns: int, number: int, seed: Sequence[int]) -> list[Tensor | None]:
    """The environments [N] i64 of each of `number` gradient steps of a pass, in host memory; None means all, in
    order."""
    number = min(number, num_columns)
    if number == 1:
        return [None]
    order = np.random.default_rng(seed).permutation(num_columns)
    return [torch.from_numpy(columns) for columns in np.array_split(order, number)]


class BatchBuffers:
    """Host memory for one batch, as large as the last one, from which it is copied to the device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda"
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def join(self, rollouts: Sequence[Rollout]) -> Batch:
        """One batch, valid until the next call; a GPU may still be copying it on the current stream when this returns.
        Raises ValueError if the rollouts differ in length or observations."""
        if self._copied is not None:
            self._copied.synchronize()  # the last batch has left the buffers
        first = rollouts[0]
        ends = np.concatenate([rollout.terminated | rollout.truncated for rollout in rollouts], axis=1)
        batch = Batch(
            obs={name: self._join(f"obs {name}", [rollout.obs[name] for rollout in rollouts]) for name in first.obs},
            reset_before=torch.from_numpy(np.concatenate([np.zeros_like(ends[:1]), ends])),
            core_state={
                name: self._join(f"core {name}", [rollout.core_state[name] for rollout in rollouts], 0)
                for name in first.core_state
            },
            **{name: self._join(name, [getattr(rollout, name) for rollout in rollouts]) for name in STEP_FIELDS},
        )
        if self._on_gpu:
            self._copied = torch.cuda.current_stream(self._device).record_event()
        return batch

    def _join(self, name: str, arrays: Sequence[np.ndarray], axis: int = 1) -> Tensor:
        shape = list(arrays[0].shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        buffer = self._buffers.get(name)
        if buffer is None or list(buffer.shape) != shape:
            buffer = torch.from_numpy(np.empty(shape, arrays[0].dtype))
            buffer = self._buffers[name] = buffer.pin_memory() if self._on_gpu else buffer
        np.concatenate(arrays, axis=axis, out=buffer.numpy())
        return buffer.to(self._device, non_blocking=True)


@functools.cache
def keep_freed_memory() -> None:
    """Keep up to `KEPT_BYTES` of freed memory in this process; effective once per process, from any thread.

    An update allocates and frees the same hundreds of megabytes each time. By default glibc returns large blocks to the
    kernel at once and gets them back page by page, which takes about 7 % of an update on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        LOG.info("the C library has no mallopt: freed memory is returned to the operating system")
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_TOP_PAD, THREAD_HEAP_BYTES)
