"""Charts hold the means of the lines that they stand for, and all that was paid."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.report.checkpoints import PaidLine
from cluster.report.curves import LEARNING, POINTS, charts, reward_mass
from cluster.report.groups import group_charts, grouped
from tests.cluster.report.records import captions, record, series


def test_a_long_curve_is_thinned_to_means() -> None:
    lines = series(entropy=list(range(10 * POINTS)))
    (chart,) = charts(LEARNING, lines)
    assert chart["title"] == "Entropy of the policy"
    assert len(chart["x"]) == POINTS
    assert chart["series"][0]["y"][:2] == [4.5, 14.5]
    assert chart["x"][0] == 5.5


def test_undefined_values_leave_a_gap_and_an_undefined_metric_has_no_chart() -> None:
    lines: list[dict[str, Any]] = [{"env_steps": 1, "entropy": None}, {"env_steps": 2, "entropy": 3.0}]
    (chart,) = charts(LEARNING, lines)
    assert chart["series"][0]["y"] == [None, 3.0]
    assert charts(LEARNING, []) == []


def test_the_stack_of_payments_adds_up_to_all_that_was_paid() -> None:
    paid = [PaidLine(1000 * n, 4.0 * n, {0: 2.0 * n, 1: 1.0 * n}) for n in range(1, 6)]
    paid[0] = PaidLine(1000, 4.0, {0: 2.0})  # the other was not among the first yet
    chart = reward_mass(paid, captions(1.0, 1.0))
    assert chart is not None
    by_name = {one["name"]: one["y"] for one in chart["series"]}
    assert by_name["caption 0"] == [2.0] * 5
    assert by_name["caption 1"] == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert np.sum(list(by_name.values()), axis=0) == pytest.approx([4.0] * 5)
    assert reward_mass([], None) is None


def test_runs_are_grouped_by_all_but_their_seed_and_labelled_by_what_differs() -> None:
    runs = []
    for seed, name in ((1, "none"), (2, "none"), (3, "counts")):
        run = record(series(entropy=[float(seed)] * 3))
        config = replace(run.config, seed=seed, reward_model=replace(run.config.reward_model, name=name))
        runs.append(replace(run, config=config))
    groups = grouped(runs)
    assert [(group.label, len(group.runs)) for group in groups] == [
        ('reward_model.name="none"', 2),
        ('reward_model.name="counts"', 1),
    ]


def test_a_groups_curve_is_the_interquartile_mean_where_every_run_has_a_value() -> None:
    values = [0.0, 1.0, 2.0, 3.0, 100.0]
    lines = [record(series(policy_state_information=[value] * 50)) for value in values]
    lines[0] = record(series(policy_state_information=[0.0] * 25))
    (chart,) = group_charts(grouped(lines))
    (one,) = chart["series"]
    assert one["name"].endswith("(5 runs)")
    assert one["y"][:25] == [2.0] * 25  # of 1, 2 and 3
    assert one["y"][25:] == [None] * 25
    assert one["low"][0] < 2.0 < one["high"][0]
