"""Whether the time penalty of an environment outweighs its goal: what a run warns of as it starts, and `delphi doctor` finds.

Invariant: silent where it is not known how the environment pays.
"""

from actors.environments.vector import EnvironmentSpec
from cluster.doctor.result import CheckResult, warning
from configs.schema import RunConfig


def weigh_penalties(config: RunConfig, spec: EnvironmentSpec) -> CheckResult | None:
    """A warning where an episode can lose more to penalties than its goal pays, as the learner is paid: scaled, clipped, times k_ext."""
    goal, reward = spec.goal_reward, config.reward
    if goal is None or reward.extrinsic_coefficient * reward.extrinsic_scale <= 0:
        return None
    penalty = reward.extrinsic_coefficient * reward.extrinsic_scale * goal.max_penalty
    paid = reward.extrinsic_coefficient * min(reward.extrinsic_scale * goal.reward, reward.extrinsic_clip)
    if -penalty <= paid:
        return None
    return warning(
        "rewards",
        f"{config.env.id}: the time penalty can cost an episode of {goal.step_limit:,} steps {-penalty:,.4g} and the goal pays {paid:,.4g}"
        f" (with reward.extrinsic_coefficient={reward.extrinsic_coefficient:g}), so what is learnt is to avoid the penalty",
        "set env.options.penalty_step=0 (and penalty_time=0 where it was set)",
    )
