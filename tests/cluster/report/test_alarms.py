"""Each alarm is raised by what it is for, stays silent without it, and is unknown where nothing can be said."""

from collections.abc import Callable
from typing import Any

import pytest

from cluster.metrics import CATALOGUE
from cluster.report.alarms import all_alarms, blind, distance, drift, hollow_reward, information, top_caption, unjudged
from cluster.report.checkpoints import Drift, Learnt, LearntTerm
from cluster.report.reading import RunRecord
from cluster.report.terms import TopItem
from configs.reward_schema import RobustConfig
from configs.schema import RunConfig
from tests.cluster.report.records import record, series


def of_policy(low: float, high: float) -> dict[str, Any]:
    difference = {"mean": (low + high) / 2, "low": low, "high": high}
    return {"evaluation": {"differences": {"policy - blind": {"in_game_score": difference}}}}


RISING, FLAT = [1.0, 1, 2, 2, 3, 3, 4, 4, 5, 5], [0.1] * 10
RATE = {"reward_intrinsic_per_1000_steps": RISING, "reward_extrinsic_per_1000_steps": [-1000.0] * 10}
"""Each step costs the same, however soon the episode ends."""
WARNED = RunConfig(robust=RobustConfig(distance_alarm=0.2))


def moved(**distances: tuple[float, float]) -> RunRecord:
    """A run of three checkpoints, between which the table of each term moved so far."""
    drifts = {name: (Drift(1, 2, first), Drift(2, 3, second)) for name, (first, second) in distances.items()}
    return record(learnt=Learnt(terms={name: LearntTerm(drifts=both) for name, both in drifts.items()}))


CASES: list[tuple[Callable[[], Any], str]] = [
    (lambda: top_caption(TopItem("You kill the newt!", 0.75)), "alarm"),
    (lambda: top_caption(TopItem("You kill the newt!", 0.5)), "good"),
    (lambda: top_caption(None), "unknown"),
    (lambda: drift(moved(main=(0.1, 0.3))), "alarm"),
    (lambda: drift(moved(main=(0.3, 0.1))), "good"),
    (lambda: drift(moved(main=(0.1, 0.1), depth=(0.1, 0.3))), "alarm"),
    (lambda: distance(record(series(reward_distance_100=[0.1, 0.3]), config=WARNED)), "alarm"),
    (lambda: distance(record(series(reward_distance_100=[0.3, 0.1]), config=WARNED)), "good"),
    (lambda: distance(record(config=WARNED)), "unknown"),
    (lambda: drift(record()), "unknown"),
    (lambda: information(record(series(policy_state_information=[0.2] * 8 + [0.005] * 2))), "alarm"),
    (lambda: information(record(series(policy_state_information=[0.005] * 8 + [0.2] * 2))), "good"),
    (lambda: information(record()), "unknown"),
    (
        lambda: hollow_reward(record(series(reward_intrinsic_per_1000_steps=RISING, episode_success_mean=FLAT))),
        "alarm",
    ),
    (
        lambda: hollow_reward(record(series(reward_intrinsic_per_1000_steps=RISING, episode_success_mean=RISING))),
        "good",
    ),
    (lambda: hollow_reward(record(series(reward_intrinsic_per_1000_steps=FLAT, episode_success_mean=FLAT))), "good"),
    (lambda: hollow_reward(record(series(episode_success_mean=FLAT))), "unknown"),
    (lambda: hollow_reward(record(series(**RATE, episode_return_extrinsic_mean=RISING))), "good"),
    (lambda: hollow_reward(record(series(**RATE, episode_return_extrinsic_mean=FLAT))), "alarm"),
    (lambda: unjudged(record(series(annotations_total=[0.0], annotations_unparsed=[0.0]))), "alarm"),
    (lambda: unjudged(record(series(annotations_total=[5.0], annotations_unparsed=[5.0]))), "alarm"),
    (lambda: unjudged(record(series(annotations_total=[5.0], annotations_unparsed=[1.0]))), "good"),
    (lambda: unjudged(record(summary={"judge_problem": "the judge never answered"})), "alarm"),
    (lambda: unjudged(record()), "unknown"),
    (lambda: blind(record(summary=of_policy(-1.0, 5.0))), "alarm"),
    (lambda: blind(record(summary=of_policy(1.0, 5.0))), "good"),
    (lambda: blind(record(summary={"evaluation": {"problem": "too slow"}})), "unknown"),
]


@pytest.mark.parametrize(("check", "level"), CASES)
def test_an_alarm_is_raised_by_what_it_is_for_alone(check: Callable[[], Any], level: str) -> None:
    alarm = check()
    assert alarm.level == level, alarm
    assert "alarm" in alarm.found, "the threshold stands beside what was found"
    assert alarm.advice


@pytest.mark.parametrize("name", ["intrinsic_unknown_fraction", "updates_skipped_nonfinite", "captions_evicted"])
def test_bounds_of_the_catalogue_are_alarms(name: str) -> None:
    metric = next(metric for metric in CATALOGUE if metric.name == name)
    assert metric.red_above is not None
    for value, level in ((metric.red_above + 0.5, "alarm"), (metric.red_above, "good")):
        found = {alarm.what: alarm.level for alarm in all_alarms(record(series(**{name: [value]})), None)}
        assert found[name] == level


def test_alarms_come_first_and_a_run_without_anything_has_none() -> None:
    levels = [alarm.level for alarm in all_alarms(record(series(grad_norm=[1.0], approx_kl=[1.0])), TopItem("", 1.0))]
    assert levels == sorted(levels, key=("alarm", "unknown", "good").index)
    assert {alarm.level for alarm in all_alarms(record(), None)} == {"unknown"}
