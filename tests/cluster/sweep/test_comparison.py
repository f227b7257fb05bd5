from typing import Any

import numpy as np
import pytest

from cluster.sweep.comparison import FIGURES, compare
from cluster.sweep.statistics import holm, improvement, interquartile_mean, permutation_test
from cluster.sweep.sweep_file import Sweep
from cluster.sweep.tables import markdown

VALUES = {
    ("easy", "none"): [0.1, 0.2, 0.0, 0.3],
    ("easy", "paid"): [0.9, 0.8, 1.0, 0.7],
    ("easy", "control_1"): [0.0, 0.1],
    ("easy", "control_2"): [0.9, 0.8],
    ("hard", "none"): [0.0, 0.0, 0.0, 0.1],
    ("hard", "paid"): [0.4, 0.0, 0.6, 0.5],
}

SHARES = {"policy": 1.0, "blind": 0.5, "random": 0.25}
"""Of a run's kills, by player."""


def sweep_of(**more: Any) -> Sweep:
    arms = {arm: ({}, (1, 2, 3, 4)) for arm in ("none", "paid", "control_1", "control_2")}
    tasks = {task: {"without": []} for task in ("easy", "hard", "not_run")}
    settings = {
        "title": "T",
        "metric": "success",
        "solved": 0.5,
        "episodes": 8,
        "envs": 4,
        "cpus": 1,
        "gpus": 0,
        "settings": {},
    }
    settings |= {"together": {"control": ("control_1", "control_2")}, "compare": ("paid",)}
    settings |= {"gain": (), "metrics": ()} | more
    return Sweep(tasks=tasks, arms=arms, **settings)


def runs_of(values: dict[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    same = dict.fromkeys(FIGURES, 0.5) | {"random": 0.02, "labels": None, "forward_passes": None, "time_s": 3.0}
    return [
        {
            **same,
            "task": task,
            "arm": arm,
            "seed": seed,
            "policy": value,
            "env_steps": 100,
            "solved_at": 50 + 10 * seed if value > 0.6 else None,
            "evaluation": {player: {"kills": 10 * value * share} for player, share in SHARES.items()},
        }
        for (task, arm), members in values.items()
        for seed, value in enumerate(members, 1)
    ]


def test_rows_are_arms_and_arms_taken_together_by_task_and_over_all() -> None:
    found = compare(sweep_of(), runs_of(VALUES))
    assert list(found["all_tasks"]) == ["none", "paid", "control_1", "control_2", "control"]
    assert found["tasks"]["easy"]["paid"]["policy"]["value"] == pytest.approx(0.85)
    assert found["tasks"]["easy"]["control"]["values"] == [0.0, 0.1, 0.9, 0.8]
    assert found["tasks"]["not_run"] == {}
    over_all = VALUES["easy", "paid"] + VALUES["hard", "paid"]
    assert found["all_tasks"]["paid"]["policy"]["value"] == pytest.approx(float(interquartile_mean(np.array(over_all))))
    assert found["all_tasks"]["paid"]["solved"] == 6
    assert found["all_tasks"]["control"]["tasks"] == 1


def test_an_arm_is_compared_with_each_other_row_on_the_tasks_that_both_have() -> None:
    """Arms that are taken together are one row of the family, not three."""
    found = compare(sweep_of(), runs_of(VALUES))["comparisons"]["paid"]
    assert list(found) == ["none", "control"]
    assert [found[other]["tasks"] for other in found] == [2, 1]
    p_values = {
        "none": permutation_test(
            [VALUES["easy", "paid"], VALUES["hard", "paid"]], [VALUES["easy", "none"], VALUES["hard", "none"]]
        ),
        "control": permutation_test(
            [VALUES["easy", "paid"]], [VALUES["easy", "control_1"] + VALUES["easy", "control_2"]]
        ),
    }
    assert {other: row["p_one_sided"] for other, row in found.items()} == p_values
    assert {other: row["p_holm"] for other, row in found.items()} == holm(p_values)
    assert found["none"]["difference"]["value"] == pytest.approx((0.7 + 0.375) / 2 - 0.025 / 2)
    strata = [[VALUES["easy", "control_1"], VALUES["easy", "control_2"]]]
    assert found["control"]["improvement"] == improvement([[VALUES["easy", "paid"]]], strata)


def test_the_share_of_a_gain_is_taken_by_task_and_over_the_tasks_of_all_three() -> None:
    found = compare(sweep_of(gain=("none", "control_2")), runs_of(VALUES))["gains"]
    assert list(found) == ["paid", "control_1", "control"]
    assert list(found["paid"]["tasks"]) == ["easy"]
    assert found["paid"]["all_tasks"]["value"] == pytest.approx(1.0)
    assert found["control_1"]["tasks"]["easy"]["value"] == pytest.approx(-0.1 / 0.7)


def test_a_profile_is_made_only_of_values_between_0_and_1() -> None:
    profile = compare(sweep_of(), runs_of(VALUES))["all_tasks"]["paid"]["profile"]
    assert profile[0]["value"] == pytest.approx(7 / 8)  # above 0
    assert profile[10]["value"] == pytest.approx(5 / 8)  # above 0.5
    assert compare(sweep_of(), runs_of({("easy", "none"): [3.0, 0.5]}))["all_tasks"]["none"]["profile"] is None


def test_the_tables_show_every_row_that_has_runs() -> None:
    runs = runs_of(VALUES)
    sweep = sweep_of(gain=("none", "control_2"), metrics=("kills",))
    facts = {"title": "T", "metric": "success", "solved": 0.5, "episodes": 8, "commits": ["a" * 40]}
    facts |= {"gain": sweep.gain, "processors": ["P"]}
    text = markdown({**facts, **compare(sweep, runs), "runs": runs})
    assert "| paid | 0.85 [" in text
    assert "## easy" in text
    assert "not_run" not in text
    assert "| control | +" in text
    assert "`aaaaaaaaaa`" in text
    assert "## Share of the gain of control_2 over none" in text
    assert "| paid | 70, 4 of 4 runs | - | - | 3 |" in text
    assert "| none | 0 of 4 runs | - | - | 3 |" in text
    assert "| paid | 8.50 [" in text
    assert "], blind 4.25 |" in text
    assert "| a random player | 0.38 |" in text


def test_a_metric_that_training_does_not_record_has_no_curve() -> None:
    runs = [{**run, "over_training": None} for run in runs_of({("easy", "none"): [0.25, 0.25]})]
    found = compare(sweep_of(), runs)
    assert found["tasks"]["easy"]["none"]["over_training"] is None
    facts = {"title": "T", "metric": "turns", "solved": 0.5, "episodes": 8, "commits": [], "gain": [], "runs": runs}
    assert "| 0 of 2 | - | 0.50 |" in markdown({**facts, "processors": ["P"], **found})
