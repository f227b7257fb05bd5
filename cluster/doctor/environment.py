"""Checks whether the time penalty of an environment outweighs its goal, at the start of a run and for `delphi doctor`.

Invariant: no warning where the environment's rewards are not known.
"""

from actors.environments.vector import EnvironmentSpec
from cluster.doctor.result import CheckResult, warning
from configs.schema import RunConfig


def weigh_penalties(config: RunConfig, spec: EnvironmentSpec) -> CheckResult | None:
    """A warning where an episode's penalties can exceed its goal's reward, both scaled, clipped and times k_ext."""
    goal, reward = spec.goal_reward, config.reward
    factor = reward.extrinsic_coefficient * reward.extrinsic_scale
    if goal is None or factor <= 0:
        return None
    penalty = factor * goal.max_penalty
    paid = reward.extrinsic_coefficient * min(reward.extrinsic_scale * goal.reward, reward.extrinsic_clip)
    if -penalty <= paid:
        return None
    return warning(
        "rewards",
        f"{config.env.id}: the time penalty can cost an episode of {goal.step_limit:,} steps {-penalty:,.4g} and the"
        f" goal pays {paid:,.4g} (with reward.extrinsic_coefficient={reward.extrinsic_coefficient:g}), so the agent"
        " learns to avoid the penalty",
        "set env.options.penalty_step=0 (and penalty_time=0 where it was set)",
    )
