"""The loss of one update: PPO-clipped policy surrogate, clipped value loss, entropy bonus.

Invariant: a pure function of its arguments; the metrics that it returns are 0-dimensional tensors without gradient, so that the
caller decides when to wait for the device.
"""

import math

import torch
from torch import Tensor

from configs.schema import LearnerConfig
from learner.vtrace import VtraceTargets

ADVANTAGE_STD_FLOOR = 1e-3


def action_log_probs(logits: Tensor, actions: Tensor) -> Tensor:
    """log pi(a) [T, B] of `actions` [T, B] under `logits` [T, B, A]."""
    return logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def clamped_ratios(log_probs: Tensor, behaviour_log_probs: Tensor, clamp: float) -> Tensor:
    """pi / mu [T, B], within [1/clamp, clamp]; outside, no gradient flows (ONI: clamp 20)."""
    bound = math.log(clamp)
    return (log_probs - behaviour_log_probs).clamp(-bound, bound).exp()


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
    """The loss to minimise, and its metrics by metric name; `logits` [T, B, A], `value_scale` (the unit of the value loss) one number,
    everything else [T, B].

    Schulman et al. 2017, PPO, eq. 7, with ONI's bounds: the ratio is clipped to [1/(1+x), 1+x], the value to within
    `value_clip` of the behaviour value; the worse of clipped and unclipped counts.
    """
    advantages = targets.pg_advantages
    if config.normalize_advantages:
        advantages = (advantages - advantages.mean()) / advantages.std(correction=0).clamp(min=ADVANTAGE_STD_FLOOR)
    low, high = 1 / (1 + config.ppo_clip), 1 + config.ppo_clip
    surrogate = torch.minimum(ratios * advantages, ratios.clamp(low, high) * advantages).mean()

    errors, moved = (values - targets.vs) / value_scale, (values - behaviour_values) / value_scale
    clipped_errors = errors - moved + moved.clamp(-config.value_clip, config.value_clip)
    value_loss = torch.maximum(errors.square(), clipped_errors.square()).mean()

    log_pi = logits.log_softmax(-1)
    entropy = -(log_pi.exp() * log_pi).sum(-1).mean()
    loss = -surrogate + config.value_coefficient * value_loss - config.entropy_coefficient * entropy
    with torch.no_grad():
        metrics = {
            "policy_loss": -surrogate,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": (
                ratios - 1 - ratios.log()
            ).mean(),  # unbiased and never negative, since actions are drawn from mu
            "clip_fraction": ((ratios < low) | (ratios > high)).float().mean(),
            "rho_clipped_fraction": (ratios > config.vtrace_rho_clip).float().mean(),
            "explained_variance": 1 - (targets.vs - values).var(correction=0) / targets.vs.var(correction=0),
        }
    return loss, {name: metric.detach() for name, metric in metrics.items()}
