"""`delphi doctor`'s checks of the environment: it runs, shows captions, and repeats a game from its seed; and whether
its time penalty outweighs its goal, which a run says at its start too.

Invariant: no warning about penalties where the environment's rewards are not known.
"""

import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from actors.captions import normalize
from actors.environments.errors import EnvironmentFailure
from actors.environments.vector import EnvironmentSpec
from cluster.doctor.result import CheckResult, failed, ok, warning
from cluster.doctor.subject import Subject
from cluster.wiring import check_programs
from configs.checks import ConfigError
from configs.schema import RunConfig

STEPS = 64
MANY_DIFFERENT = 0.9
"""Of the steps with a caption, the fraction of different ones from which on a judge cannot keep up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Two environments over fixed actions."""

    shown: list[bytes]  # their observations
    captions: int  # steps with a caption
    different: int  # captions, as a judge is asked about them
    rate: float  # steps per second, start included
    notices: tuple[str, ...]  # for the user


def check_environment(subject: Subject) -> list[CheckResult]:
    """Whether it runs, shows captions and repeats a game from its seed, and whether penalties outweigh its goal."""
    try:
        check_programs(subject.config, subject.spec)
    except ConfigError as error:
        return [failed(str(error), "see docs/programs.md")]
    try:
        first, again, other = (_observe(subject, subject.config.seed + more) for more in (0, 0, 1))
        penalties = weigh_penalties(subject.config, subject.spec)
    except EnvironmentFailure as failure:
        advice = "put that right in the environment or its captioner; `delphi train` writes its traceback into the log"
        return [failed(str(failure), advice)]
    results = [_compare_seeds(subject, first, again, other)]
    results += [replace(penalties, check="rewards")] if penalties else []
    return results + [warning(notice, "see docs/environments.md") for notice in first.notices]


def _compare_seeds(subject: Subject, first: Observed, again: Observed, other: Observed) -> CheckResult:
    found = (
        f"{subject.config.env.id}: {first.rate:,.0f} steps/s with two, start included;"
        f" {first.captions} of {2 * STEPS} steps had a caption, {first.different} different"
    )
    if first.shown != again.shown:
        advice = "expect runs that cannot be repeated, or take another env.id"
        return warning(f"{found}; the same seed gives another game", advice)
    if first.captions >= STEPS and first.different > MANY_DIFFERENT * first.captions and subject.plan.main.asks_judge:
        advice = "say the same in the same words, without digits (env.fold_digits=true replaces them)"
        return warning(f"{found}; each of them costs the judge a question", advice)
    if first.shown == other.shown and subject.spec.num_actions > 1:
        return ok(f"{found}; every seed gives the same game")
    if not first.captions and subject.plan.main.asks_judge:
        advice = "set env.captioner to where the environment says what happened, or to a function that says it"
        return warning(f"{found}, so nothing would be judged", advice)
    return ok(f"{found}; seeds are kept")


def _observe(subject: Subject, seed: int) -> Observed:
    """What two environments show over fixed actions. Raises EnvironmentFailure."""
    shown: list[bytes] = []
    captions: list[str] = []
    read = partial(normalize, fold_case=subject.config.env.fold_case, fold_digits=subject.config.env.fold_digits)
    started = time.monotonic()
    with closing(subject.make_environment(2, seed)) as env:
        env.reset()
        for row in np.random.default_rng(0).integers(0, env.spec.num_actions, (STEPS, 2)):
            step = env.step(row)
            captions += filter(None, map(read, step.captions))
            shown += [array.tobytes() for _, array in sorted(step.obs.items())]
        errors, failure = env.take_errors()
        if errors:
            raise EnvironmentFailure(failure.splitlines()[-1])
        rate = 2 * STEPS / (time.monotonic() - started)
        notices = (*env.spec.notices, *env.take_notices())
    return Observed(shown=shown, captions=len(captions), different=len(set(captions)), rate=rate, notices=notices)


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
