"""What is looked at before a learning curve is believed: does the policy read its observations, how far does an update move it, does the
core still say anything.

Invariant: pure functions without gradient; metrics are 0-dimensional tensors on the device of their arguments.
"""

import torch
from torch import Tensor

SATURATED, DEAD = 0.95, 0.01
"""An output of the core at least so large is saturated; a unit of it that deviates by less over states is dead."""


@torch.no_grad()
def state_information(logits: Tensor) -> Tensor:
    """Mutual information of state and action in nats, of a policy with `logits` [..., A] in the states it met: H(mean policy) - mean
    H(policy). 0 is a policy that does not look."""
    log_pi = logits.flatten(0, -2).float().log_softmax(-1)
    pi = log_pi.exp()
    mean = pi.mean(0)
    return (pi * log_pi).sum(-1).mean() - torch.special.xlogy(mean, mean).sum()


@torch.no_grad()
def mean_kl(before: Tensor, after: Tensor) -> Tensor:
    """Mean of KL(before || after) in nats over the states of two policies' logits [..., A]."""
    log_before = before.log_softmax(-1)
    return (log_before.exp() * (log_before - after.log_softmax(-1))).sum(-1).mean()


@torch.no_grad()
def core_metrics(outputs: Tensor) -> dict[str, Tensor]:
    """Shares, by metric name, of a core's outputs [T, B, H] that are saturated, and of its units that are dead."""
    outputs = outputs.flatten(0, -2)
    return {
        "core_saturated_fraction": (outputs.abs() > SATURATED).float().mean(),
        "core_dead_fraction": (outputs.std(0, correction=0) < DEAD).float().mean(),
    }
