"""Several learners that make each update together: who computes which environments, and what they exchange by
torch.distributed, so that an update equals that of one learner with the whole batch, up to rounding.

Invariant: all learners make the same exchanges in the same order, and everything that they decide by (gradients,
targets, whether a step is finite) is the result of an exchange, so it is the same on all of them.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from actors.rollout import Rollout


@dataclass(frozen=True, slots=True)
class Share:
    """The environments [first, first + count) of a batch, which one learner computes."""

    first: int
    count: int
    total: int  # environments in the batch

    @property
    def is_whole(self) -> bool:
        """Whether no other learner computes a part."""
        return self.count == self.total

    def among(self, columns: Tensor) -> Tensor:
        """Positions [N] i64 in `columns`, some environments of the batch, of those that are in this share."""
        return ((columns >= self.first) & (columns < self.first + self.count)).nonzero().flatten()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One learner's part of an update (first learner -> each learner)."""

    rollouts: Sequence[Rollout]  # each has steps to train on
    rewards: np.ndarray  # [T, B] f32: of these rollouts, without lost environments
    share: Share
    goal_vectors: np.ndarray | None = None  # [G, D] f32: those that the policy reads, where they are new


def divide(
    rollouts: Sequence[Rollout], rewards: np.ndarray, number: int, goal_vectors: np.ndarray | None = None
) -> list[Part]:
    """The parts of `number` learners: as many rollouts each, in order. `rewards` [T, B] are those of all rollouts,
    without lost environments; `goal_vectors`: see `Part`."""
    ends = np.cumsum([0, *(int(rollout.kept.sum()) for rollout in rollouts)]).tolist()
    parts = []
    for indices in np.array_split(np.arange(len(rollouts)), number):
        first, last = int(indices[0]), int(indices[-1]) + 1
        share = Share(ends[first], ends[last] - ends[first], ends[-1])
        own = rewards[:, share.first : share.first + share.count]
        parts.append(Part(rollouts=rollouts[first:last], rewards=own, share=share, goal_vectors=goal_vectors))
    return parts


class Peers(Protocol):
    """The other learners, as the first one reaches them."""

    def hand_out(self, parts: Sequence[Part], progress: float) -> None:
        """Make each of them compute its part (`Learner.take_part`), without waiting."""

    def finish(self) -> None:
        """Wait until all have; raises the error of one that has failed."""


class ExchangeFailed(RuntimeError):
    """The learners could not exchange their results: one is gone, or does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where and how learners meet (first learner -> the others)."""

    host: str
    port: int
    size: int  # learners
    backend: str  # gloo or nccl
    device_type: str  # of the first learner
    timeout_s: float  # of the meeting and of each exchange


class Exchange:
    """One learner's connection to the others, of which there is one per process."""

    def __init__(self, size: int) -> None:
        self.size = size

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all learners' `tensor`, which it overwrites; the same bits everywhere. Raises ExchangeFailed."""
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise ExchangeFailed(f"the learners could not exchange their results: {error}") from error
        return tensor

    def join(self, tensor: Tensor, share: Share) -> Tensor:
        """[..., total] of all learners' `tensor` [..., count]."""
        whole = tensor.new_zeros((*tensor.shape[:-1], share.total))
        whole[..., share.first : share.first + share.count] = tensor
        return self.sum(whole)

    def sum_gradients(self, net: nn.Module, loss: Tensor) -> Tensor:
        """Set each gradient to the sum of all learners'; the sum of their `loss` (0-dimensional)."""
        parameters = list(net.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        summed = self.sum(torch.cat([loss.detach().reshape(1), *(gradient.flatten() for gradient in gradients)]))
        for parameter, gradient in zip(parameters, summed[1:].split([p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter)
        return summed[0]

    def close(self) -> None:
        """Leave the others."""
        dist.destroy_process_group()


def open_meeting(
    host: str, size: int, *, backend: str, device_type: str, timeout_s: float
) -> tuple[Meeting, dist.Store]:
    """A meeting at a free port of this machine's address `host`, and its store, for `meet`."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),  # else it would listen on all addresses
    )
    meeting = Meeting(host=host, port=port, size=size, backend=backend, device_type=device_type, timeout_s=timeout_s)
    return meeting, store


def meet(meeting: Meeting, rank: int, device: torch.device, address: str, store: dist.Store | None = None) -> Exchange:
    """Connect learner `rank` (from 0), which computes on `device` and listens on its machine's `address`, to the
    others; once per process. Without a `store` it connects to the meeting's. Raises ExchangeFailed and, for a device of
    another type than the first learner's, ValueError."""
    if device.type != meeting.device_type:
        raise ValueError(
            f"learner.device: learner {rank + 1} computes on {device.type}, the first one on {meeting.device_type}; set"
            " learner.device, and for a GPU each cluster.learner_gpus=1"
        )
    if (interface := _interface(address)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    timeout = timedelta(seconds=meeting.timeout_s)
    try:
        dist.init_process_group(
            meeting.backend,
            store=store or dist.TCPStore(meeting.host, meeting.port, is_master=False, timeout=timeout),
            rank=rank,
            world_size=meeting.size,
            timeout=timeout,
            device_id=torch.device("cuda", device.index or 0) if meeting.backend == "nccl" else None,
        )
    except RuntimeError as error:
        where = f"{meeting.host}:{meeting.port}"
        raise ExchangeFailed(f"learner {rank + 1} could not meet the others at {where}: {error}") from error
    return Exchange(meeting.size)


def _interface(address: str) -> str | None:
    """The network interface that has this address. Gloo would look the host's name up instead, which on some systems
    is a loopback address."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    return None
