"""`delphi doctor`'s checks of the environment: it runs, shows captions, and repeats a game from its seed; and whether
its time penalty outweighs its goal, which a run says at its start too.

Invariant: no warning about penalties where the environment's rewards are not known.
"""

import time
from contextlib import closing
from dataclasses import replace

import numpy as np

from actors.environments.errors import EnvironmentFailure
from actors.environments.vector import EnvironmentSpec
from cluster.doctor.result import CheckResult, failed, ok, warning
from cluster.doctor.subject import Subject
from configs.schema import RunConfig

STEPS = 64


def check_environment(subject: Subject) -> list[CheckResult]:
    """Whether it runs, shows captions and repeats a game from its seed, and whether penalties outweigh its goal."""
    try:
        results = [_check_seeds(subject)]
        penalties = weigh_penalties(subject.config, subject.spec)
    except EnvironmentFailure as failure:
        advice = "put that right in the environment; `delphi train` writes its traceback into the log"
        return [failed(str(failure), advice)]
    results += [replace(penalties, check="rewards")] if penalties else []
    return results + [warning(notice, "see docs/environments.md") for notice in subject.spec.notices]


def _check_seeds(subject: Subject) -> CheckResult:
    config, steps = subject.config, 2 * STEPS
    started = time.monotonic()
    first, captions = _observe(subject, config.seed)
    rate = steps / (time.monotonic() - started)
    again, _ = _observe(subject, config.seed)
    other, _ = _observe(subject, config.seed + 1)
    found = f"{config.env.id}: {rate:,.0f} steps/s with two, start included; {captions} of {steps} steps had a caption"
    if first != again:
        advice = "expect runs that cannot be repeated, or take another env.id"
        return warning(f"{found}; the same seed gives another game", advice)
    if first == other and subject.spec.num_actions > 1:
        return ok(f"{found}; every seed gives the same game")
    if not captions and subject.plan.asks_judge:
        advice = "set env.captioner to where the environment says what happened"
        return warning(f"{found}, so nothing would be judged", advice)
    return ok(f"{found}; seeds are kept")


def _observe(subject: Subject, seed: int) -> tuple[list[bytes], int]:
    """Two environments' observations over fixed actions, and the steps with a caption. Raises EnvironmentFailure."""
    shown, captions = [], 0
    with closing(subject.make_environment(2, seed)) as env:
        env.reset()
        for row in np.random.default_rng(0).integers(0, env.spec.num_actions, (STEPS, 2)):
            step = env.step(row)
            captions += sum(bool(caption.strip(b" \0")) for caption in step.captions)
            shown += [array.tobytes() for _, array in sorted(step.obs.items())]
        errors, first = env.take_errors()
        if errors:
            raise EnvironmentFailure(first.splitlines()[-1])
    return shown, captions


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
        f"{config.env.id}: the time penalty can cost an episode of {goal.step_limit:,} steps {-penalty:,.4g} and the"
        f" goal pays {paid:,.4g} (with reward.extrinsic_coefficient={reward.extrinsic_coefficient:g}), so the agent"
        " learns to avoid the penalty",
        "set env.options.penalty_step=0 (and penalty_time=0 where it was set)",
    )
