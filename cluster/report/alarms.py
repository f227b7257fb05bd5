"""What is wrong with a run: each check with its threshold, the value found, and what to do.

Invariant: a check is a function of the record alone; what cannot be checked is said to be unknown, never taken as good.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from cluster.metrics import CATALOGUE, LOOKING_ABOVE, THROUGHPUT, Metric
from cluster.report.reading import RunRecord
from cluster.report.terms import TopItem

TOP_SHARE = 0.5
DRIFT = 0.2
RISE = 1.1
"""A reward rises where its last fifth has this many times the mean of its first."""
OUTCOMES = ("episode_success_mean", "in_game_score_per_1000_steps", "reward_extrinsic_per_1000_steps")
"""What intrinsic reward is to serve: the first of these that the run defines."""


class Alarm(NamedTuple):
    """The result of one check (record -> page)."""

    level: Literal["alarm", "good", "unknown"]
    what: str
    found: str
    """What was found, beside its threshold."""
    advice: str
    """What it means and what to do; for the good ones too, so that a reader knows what was checked."""


def all_alarms(run: RunRecord, top: TopItem | None) -> list[Alarm]:
    """Every check of the run: alarms first, then what is unknown, then what is good."""
    found = [check(run) for check in CHECKS]
    found.insert(0, top_caption(top))
    if run.config.robust.distance_alarm:
        found.append(distance(run))
    found += unhealthy_metrics(run)
    return sorted(found, key=lambda alarm: ("alarm", "unknown", "good").index(alarm.level))


def top_caption(top: TopItem | None) -> Alarm:
    """One caption, or another term's item, has most of the reward."""
    what, limit = "Share of the top caption in the reward paid", f"alarm above {TOP_SHARE:.0%}"
    advice = (
        "One event is most of what the policy is paid for: it may repeat that instead of making progress. Look at the"
        " caption and its judgement below; correct the rubric, or raise reward.count_exponent so that repetition fades."
    )
    if top is None:
        return Alarm("unknown", what, f"no intrinsic reward was paid for any item ({limit})", advice)
    return Alarm("alarm" if top.share > TOP_SHARE else "good", what, f"{top.share:.1%}, “{top.text}” ({limit})", advice)


def drift(run: RunRecord) -> Alarm:
    """The last two reward tables differ."""
    what, limit = "Drift between reward versions", f"alarm above {DRIFT:g}"
    advice = (
        "The reward of captions that were known before has changed since the checkpoint before: the policy learns a"
        " moving target, and the value function lags behind. Train the reward model longer, give it more labels"
        " (reward_model.warmup_labels), or train it before the policy (reward_model.judgements)."
    )
    newest = {name: term.drifts[-1] for name, term in run.learnt.terms.items() if term.drifts}
    if not newest:
        return Alarm("unknown", what, f"needs two checkpoints with a reward table ({limit})", advice)
    name, last = max(newest.items(), key=lambda entry: entry[1].distance)
    of_term = f" of the term {name}" if len(run.learnt.terms) > 1 else ""
    found = f"table distance {last.distance:.3f}{of_term} from step {last.from_steps:,} to {last.to_steps:,} ({limit})"
    return Alarm("alarm" if last.distance > DRIFT else "good", what, found, advice)


def distance(run: RunRecord) -> Alarm:
    """The reward tables move further than the run allows."""
    what, limit = "Distance of reward tables", run.config.robust.distance_alarm
    bound = f"alarm above robust.distance_alarm = {limit:g}"
    advice = (
        "What is paid changes its meaning while the policy learns it. Look at the items whose reward changed; more"
        " labels, or robust.ensemble with robust.pessimism, steady a reward model."
    )
    value = run.last("reward_distance_100")
    if value is None:
        return Alarm("unknown", what, f"not measured yet ({bound})", advice)
    return Alarm("alarm" if value > limit else "good", what, f"{value:.3f} ({bound})", advice)


def information(run: RunRecord) -> Alarm:
    """The policy does not look."""
    what, limit = "Information between state and action", f"alarm below {LOOKING_ABOVE:g} nats"
    advice = (
        "A policy below it acts the same whatever it sees; a rising return then only means that some actions are useful"
        " on average. See docs/learning.md: larger or more gradient steps, policy.core_skip=true, a smaller"
        " learner.value_coefficient."
    )
    value = recent(run, "policy_state_information")
    if value is None:
        return Alarm("unknown", what, f"not measured yet ({limit})", advice)
    found = f"{value:.4f} nats, last fifth of the run ({limit})"
    return Alarm("alarm" if value < LOOKING_ABOVE else "good", what, found, advice)


def hollow_reward(run: RunRecord) -> Alarm:
    """Intrinsic reward rises while the outcome does not."""
    what, limit = "Intrinsic reward and the task", "alarm where intrinsic reward rises and the outcome does not"
    advice = (
        "The policy may have found how to be paid without making progress. Compare with a run of"
        " reward_model.permute=true and one of reward_model.name=none; look at the captions that are paid most; correct"
        " the rubric, or lower reward.intrinsic_coefficient."
    )
    intrinsic = fifths(run, "reward_intrinsic_per_1000_steps")
    name = next((name for name in OUTCOMES if fifths(run, name)), None)
    outcome = fifths(run, name) if name else None
    if name == OUTCOMES[-1] and outcome and any(outcome) and math.isclose(*outcome, rel_tol=1e-3):
        name = "episode_return_extrinsic_mean"  # the same for every step: what differs is how many steps it takes
        outcome = fifths(run, name)
    if not intrinsic or not outcome or not any(intrinsic):
        return Alarm("unknown", what, f"needs intrinsic reward and an outcome over five metric lines ({limit})", advice)
    rises, serves = intrinsic[1] > RISE * intrinsic[0], outcome[1] > outcome[0]
    found = (
        f"intrinsic reward {intrinsic[0]:.3g} → {intrinsic[1]:.3g}, {name} {outcome[0]:.3g} → {outcome[1]:.3g}, first"
        f" and last fifth of the run ({limit})"
    )
    return Alarm("alarm" if rises and not serves else "good", what, found, advice)


def unjudged(run: RunRecord) -> Alarm:
    """The judge never answered."""
    what, limit = "The judge answers", "alarm where no answer was usable"
    advice = "Nothing was rewarded. Look at service*.log and log.txt in the run directory; `delphi doctor` checks the"
    advice += " judge; its address, credentials and the rubric's answers are the usual causes."
    answers, unparsed = run.last("annotations_total"), run.last("annotations_unparsed") or 0
    if problem := run.summary.get("judge_problem"):
        return Alarm("alarm", what, f"{problem} ({limit})", advice)
    if answers is None:
        return Alarm("unknown", what, f"this run asks no judge, or has not yet ({limit})", advice)
    found = f"{answers:,.0f} answers, {unparsed:,.0f} of them unusable ({limit})"
    return Alarm("good" if answers > unparsed else "alarm", what, found, advice)


def blind(run: RunRecord) -> Alarm:
    """The policy does not beat its own blind player."""
    what, limit = "Policy against its blind player", "alarm where the interval of the difference reaches 0"
    advice = "Both have the same action frequencies; a policy that is not better has learnt no use of its observations."
    advice += " Train longer, or look at the information between state and action."
    from cluster.run.outcome import METRICS

    differences = (run.summary.get("evaluation") or {}).get("differences", {}).get("policy - blind", {})
    name = next((name for name in METRICS if name in differences), None)
    if name is None:
        return Alarm("unknown", what, f"not evaluated: `delphi eval` plays both ({limit})", advice)
    low, high = differences[name]["low"], differences[name]["high"]
    return Alarm("good" if low > 0 else "alarm", what, f"{METRICS[name]} [{low:+.3g}, {high:+.3g}] ({limit})", advice)


CHECKS: tuple[Callable[[RunRecord], Alarm], ...] = (unjudged, information, blind, hollow_reward, drift)


def unhealthy_metrics(run: RunRecord) -> list[Alarm]:
    """Every other bound of the catalogue that tells of learning, rewards or faults; those that a run never defines are
    left out."""
    found = []
    for metric in CATALOGUE:
        has_bound = metric.red_above is not None or metric.red_below is not None
        if not has_bound or metric.group == THROUGHPUT or metric.name == "policy_state_information":
            continue
        value = run.last(metric.name) if metric.kind == "counter" else recent(run, metric.name)
        if value is not None:
            found.append(_of_metric(metric, value))
    return found


def _of_metric(metric: Metric, value: float) -> Alarm:
    is_red = (metric.red_above is not None and value > metric.red_above) or (
        metric.red_below is not None and value < metric.red_below
    )
    bound = f"above {metric.red_above:g}" if metric.red_above is not None else f"below {metric.red_below:g}"
    of = "in the whole run" if metric.kind == "counter" else "in the last fifth of the run"
    found = f"{value:,.4g} {metric.unit} {of} (alarm {bound})"
    advice = f"{metric.meaning[0].upper()}{metric.meaning[1:]}. Healthy: {metric.healthy}. What to do is in the runbook"
    return Alarm("alarm" if is_red else "good", metric.name, found, f"{advice}, cluster/README.md.")


def recent(run: RunRecord, name: str) -> float | None:
    """The mean of a metric over the last fifth of the lines; None where it is not defined there."""
    return _mean(run.lines[-max(len(run.lines) // 5, 1) :], name)


def fifths(run: RunRecord, name: str) -> tuple[float, float] | None:
    """The means of a metric over the first and the last fifth of the lines that define it; None with fewer than
    five."""
    lines = [line for line in run.lines if line.get(name) is not None]
    if len(lines) < 5:
        return None
    size = len(lines) // 5
    first, last = _mean(lines[:size], name), _mean(lines[-size:], name)
    return None if first is None or last is None else (first, last)


def _mean(lines: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return float(np.mean(values)) if values else None
