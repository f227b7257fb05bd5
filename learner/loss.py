"""The loss of one update (PPO-clipped policy surrogate, clipped value loss, entropy bonus) and diagnostics of the
policy and its core.

Invariant: pure functions; metrics are 0-dimensional tensors without gradient on the device of the arguments, so that
the caller decides when to synchronise with the device.
"""

import math

import torch
from torch import Tensor

from configs.schema import LearnerConfig
from learner.vtrace import VtraceTargets

ADVANTAGE_STD_FLOOR = 1e-3
SATURATED, DEAD = 0.95, 0.01
"""A core output above this magnitude is saturated; a core unit with a lower standard deviation over states is dead."""


def action_log_probs(logits: Tensor, actions: Tensor) -> Tensor:
    """log pi(a) [T, B] of `actions` [T, B] under `logits` [T, B, A]."""
    return logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def clamped_ratios(log_probs: Tensor, behaviour_log_probs: Tensor, clamp: float) -> Tensor:
    """pi / mu [T, B], within [1/clamp, clamp]; outside, no gradient flows (ONI: clamp 20)."""
    bound = math.log(clamp)
    return (log_probs - behaviour_log_probs).clamp(-bound, bound).exp()


def standardized(advantages: Tensor) -> Tensor:
    """The advantages [T, B] in units of their standard deviation around their mean."""
    return (advantages - advantages.mean()) / advantages.std(correction=0).clamp(min=ADVANTAGE_STD_FLOOR)


def policy_loss(
    *,
    logits: Tensor,
    ratios: Tensor,
    values: Tensor,
    behaviour_values: Tensor,
    targets: VtraceTargets,
    config: LearnerConfig,
    value_scale: Tensor | float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise, and its metrics by name; `logits` [T, B, A], `value_scale` (the unit of the value loss) a
    scalar, everything else [T, B]. The advantages are used as they are.

    Schulman et al. 2017, PPO, eq. 7, with ONI's bounds: the ratio is clipped to [1/(1+x), 1+x], the value to within
    `value_clip` of the behaviour value; the worse of clipped and unclipped counts.
    """
    advantages = targets.pg_advantages
    low, high = 1 / (1 + config.ppo_clip), 1 + config.ppo_clip
    surrogate = torch.minimum(ratios * advantages, ratios.clamp(low, high) * advantages).mean()

    errors, moved = (values - targets.vs) / value_scale, (values - behaviour_values) / value_scale
    clipped_errors = errors - moved + moved.clamp(-config.value_clip, config.value_clip)
    value_loss = torch.maximum(errors.square(), clipped_errors.square()).mean()

    log_pi = logits.log_softmax(-1)
    entropy = -(log_pi.exp() * log_pi).sum(-1).mean()
    loss = -surrogate + config.value_coefficient * value_loss - config.entropy_coefficient * entropy
    with torch.no_grad():
        residuals = targets.vs - values
        metrics = {
            "policy_loss": -surrogate,
            "value_loss": value_loss,
            "entropy": entropy,
            # Unbiased and never negative, because the actions are drawn from mu.
            "approx_kl": (ratios - 1 - ratios.log()).mean(),
            "clip_fraction": ((ratios < low) | (ratios > high)).float().mean(),
            "rho_clipped_fraction": (ratios > config.vtrace_rho_clip).float().mean(),
            "residual_mean": residuals.mean(),
            "residual_variance": residuals.var(correction=0),
        }
    return loss, {name: metric.detach() for name, metric in metrics.items()}


@torch.no_grad()
def mean_kl(before: Tensor, after: Tensor) -> Tensor:
    """Mean of KL(before || after) in nats over the states of two policies' logits [..., A]."""
    log_before = before.log_softmax(-1)
    return (log_before.exp() * (log_before - after.log_softmax(-1))).sum(-1).mean()


@torch.no_grad()
def core_metrics(outputs: Tensor) -> dict[str, Tensor]:
    """Fractions, by metric name, of a core's outputs [T, B, H] that are saturated and of its units that are dead."""
    outputs = outputs.flatten(0, -2)
    return {
        "core_saturated_fraction": (outputs.abs() > SATURATED).float().mean(),
        "core_dead_fraction": (outputs.std(0, correction=0) < DEAD).float().mean(),
    }
