"""V-trace targets and policy-gradient advantages for episodes that end anywhere in a rollout, and the running scale of
the targets.

Invariant: no value crosses an episode's end: the bootstrap value is 0 after a termination and the value of the
episode's own last observation after a truncation. The scale is a function of the targets observed, in order, so it is
saved and resumed exactly.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from configs.schema import LearnerConfig

HORIZON = 250
"""Batches over which `ReturnScale` averages; fewer at the start of a run, where it is a plain mean."""
SMALLEST_SCALE = 1e-4
"""Lower bound of the standard deviation (van Hasselt et al. 2016): before the first reward targets hardly differ."""


class VtraceTargets(NamedTuple):
    """Targets of T steps of B environments."""

    vs: Tensor  # [T, B] f32: the value targets
    pg_advantages: Tensor  # [T, B] f32: the advantages in the policy surrogate

    def columns(self, indices: Tensor) -> "VtraceTargets":
        """The targets of the environments at `indices` [N] i64."""
        return VtraceTargets(self.vs[:, indices], self.pg_advantages[:, indices])


@torch.no_grad()
def vtrace_targets(
    *,
    ratios: Tensor,
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final_values: Tensor,
    config: LearnerConfig,
) -> VtraceTargets:
    """V-trace (Espeholt et al. 2018, IMPALA, eq. 1) by its backward recursion (remark 1); all tensors are [T, B].

    `ratios` are pi(a|x) / mu(a|x). `next_values[t]` is V(obs[t+1]): its last row bootstraps the rollout's end, and it
    is ignored where an episode ended at t. `final_values` is read only where truncated. An advantage is r + gamma vs' -
    V, multiplied by rho only if `rho_weighted_advantage` (ONI's form; the clipped-ratio surrogate already contains the
    importance weight).
    """
    gamma, trace_lambda = config.gamma, config.trace_lambda
    done = terminated | truncated
    next_values = torch.where(truncated, final_values, next_values).masked_fill(terminated, 0.0)
    rhos = ratios.clamp(max=config.vtrace_rho_clip)
    deltas = rhos * (rewards + gamma * next_values - values)
    traces = gamma * trace_lambda * ratios.clamp(max=config.vtrace_c_clip) * ~done
    corrections = torch.zeros_like(values)  # vs - V
    correction = torch.zeros_like(values[0])
    for t in reversed(range(len(values))):
        correction = deltas[t] + traces[t] * correction
        corrections[t] = correction
    vs = values + corrections
    vs_next = torch.where(done, next_values, torch.cat([vs[1:], next_values[-1:]]))
    advantages = rewards + gamma * torch.lerp(next_values, vs_next, trace_lambda) - values
    return VtraceTargets(vs, rhos * advantages if config.rho_weighted_advantage else advantages)


class ReturnScale:
    """Mean and standard deviation of the targets, the units of the values learnt (PopArt, van Hasselt et al. 2016)."""

    def __init__(self) -> None:
        self._count, self._mean, self._square = 0, 0.0, 0.0

    def observe(self, targets: Tensor) -> None:
        """Update both moments with the finite targets [T, B] of one batch."""
        finite = targets[targets.isfinite()]
        if not len(finite):
            return
        mean, square = torch.stack([finite.mean(), finite.square().mean()]).tolist()
        self._count += 1
        rate = 1 / min(self._count, HORIZON)
        self._mean += rate * (mean - self._mean)
        self._square += rate * (square - self._square)

    def unit(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, 0-dimensional f32; 0 and 1 before the first observation."""
        deviation = math.sqrt(max(self._square - self._mean**2, SMALLEST_SCALE**2)) if self._count else 1.0
        return torch.tensor(self._mean, device=device), torch.tensor(deviation, device=device)

    def state_dict(self) -> dict[str, Any]:
        """Counter and moments, as JSON values."""
        return {"count": self._count, "mean": self._mean, "square": self._square}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Continue from `state_dict`; None, from a checkpoint that has no scale yet, starts at the beginning."""
        if state is not None:
            self._count, self._mean, self._square = state["count"], state["mean"], state["square"]
