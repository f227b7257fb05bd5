"""The metrics of an update, from those of its gradient steps and from the policy that collected its batch.

Invariant: with several learners, each metric is that of the whole batch.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from learner.data_parallel import Exchange


class GradientStep(NamedTuple):
    """One gradient step, as one learner saw it; tensors are 0-dimensional."""

    metrics: Mapping[str, Tensor]  # of `policy_loss`, over this learner's environments; empty if it had none
    fraction: float  # of the step's environments that this learner computed
    target_variance: Tensor  # of the value targets of all learners
    grad_norm: Tensor  # of all learners, before clipping
    is_clipped: Tensor  # f32: whether that was above the limit
    is_finite: bool  # whether the step is taken


def update_metrics(steps: Sequence[GradientStep], num_first: int, exchange: Exchange | None) -> dict[str, Tensor]:
    """The means over gradient steps, 0-dimensional, by name. The explained variance is that of the first `num_first`
    steps, because the network has already trained on the environments of the others."""
    zero = torch.zeros_like(steps[0].grad_norm)
    names = next(step.metrics for step in steps if step.metrics)
    by_name = {name: torch.stack([step.metrics.get(name, zero) for step in steps]) for name in names}
    by_name["residual_mean_square"] = by_name["residual_mean"].square()
    if exchange is not None:
        fractions = torch.tensor([step.fraction for step in steps], device=zero.device)
        summed = exchange.sum(torch.stack([*by_name.values()]) * fractions)
        by_name = dict(zip(by_name, summed, strict=True))
    # The variance within each learner's environments, and that between learners: 0 if there is only one.
    unexplained = by_name.pop("residual_variance") + (
        by_name.pop("residual_mean_square") - by_name.pop("residual_mean").square()
    )
    target_variances = torch.stack([step.target_variance for step in steps])
    by_name["explained_variance"] = (1 - unexplained / target_variances)[:num_first]
    by_name["grad_norm"] = torch.stack([step.grad_norm for step in steps])
    by_name["grad_clipped_fraction"] = torch.stack([step.is_clipped for step in steps])
    return {name: metric.nanmean() for name, metric in by_name.items()}


@torch.no_grad()
def state_information(logits: Tensor, fraction: float = 1.0, exchange: Exchange | None = None) -> Tensor:
    """Mutual information of state and action in nats, H(mean policy) - mean H(policy), of a policy with `logits` [...,
    A] in the states visited, of which they are this learner's `fraction`; 0 for a policy that ignores its
    observations."""
    log_pi = logits.flatten(0, -2).float().log_softmax(-1)
    pi = log_pi.exp()
    means = torch.cat([pi.mean(0), (pi * log_pi).sum(-1).mean().reshape(1)])
    if exchange is not None:
        means = exchange.sum(means * fraction)
    return means[-1] - torch.special.xlogy(means[:-1], means[:-1]).sum()
