"""How the arms of a sweep compare: figures with intervals per task and over all tasks, and tests between arms.

Invariant: the unit is a run, never an episode. Intervals and tests resample runs within their task, and where several
arms are taken together, within their arm. Arms are compared on the tasks that both have.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.sweep.statistics import (
    Strata,
    difference,
    estimate,
    holm,
    improvement,
    permutation_test,
    profile,
    share_of_gain,
)
from cluster.sweep.sweep_file import Sweep

FIGURES = ("policy", "over_training", "blind", "per_1000_steps", "intrinsic_per_1000_steps", "state_information")
"""Of a row in a task: interquartile means over runs with intervals; None where a run lacks the figure."""
LEVELS = [round(level / 20, 2) for level in range(20)]
"""Of the performance profile, for metrics that lie in [0, 1]."""

Run = Mapping[str, Any]
Row = dict[str, list[list[Run]]]
"""Task -> the runs by stratum."""


def compare(sweep: Sweep, runs: Sequence[Run]) -> dict[str, Any]:
    """Figures of every row by task and over all tasks, the share of `sweep.gain` of each, and of each arm in
    `sweep.compare` against every other row."""
    rows = _rows(sweep, runs)
    lie_in_unit = bool(runs) and all(0.0 <= run["policy"] <= 1.0 for run in runs)
    return {
        "tasks": {
            task: {name: _in_task(row[task], sweep) for name, row in rows.items() if task in row}
            for task in sweep.tasks
        },
        "all_tasks": {name: _over_tasks(row, sweep, lie_in_unit) for name, row in rows.items()},
        "gains": _gains(sweep, rows),
        "comparisons": {name: _against_others(name, sweep, rows) for name in sweep.compare if name in rows},
    }


def _rows(sweep: Sweep, runs: Sequence[Run]) -> dict[str, Row]:
    """Arms, then arms taken together, of those that have runs."""
    members = {**{arm: (arm,) for arm in sweep.arms}, **sweep.together}
    rows: dict[str, Row] = {}
    for name, arms in members.items():
        row: Row = {}
        for task in sweep.tasks:
            strata = [[run for run in runs if (run["task"], run["arm"]) == (task, arm)] for arm in arms]
            if strata := [stratum for stratum in strata if stratum]:
                row[task] = strata
        if row:
            rows[name] = row
    return rows


def _in_task(strata: Sequence[Sequence[Run]], sweep: Sweep) -> dict[str, Any]:
    runs = [run for stratum in strata for run in stratum]
    return {
        "seeds": [run["seed"] for run in runs],
        "values": [run["policy"] for run in runs],
        "random": float(np.mean([run["random"] for run in runs])),
        "solved": sum(run["policy"] >= sweep.solved for run in runs),
        "solved_at": [run["solved_at"] for run in runs],
        "labels": _mean(runs, "labels"),
        "forward_passes": _mean(runs, "forward_passes"),
        "seconds": _mean(runs, "time_s"),
        "metrics": {metric: _further(strata, metric) for metric in sweep.metrics},
        **{figure: _estimate(strata, figure) for figure in FIGURES},
    }


def _estimate(strata: Sequence[Sequence[Run]], figure: str) -> dict[str, float] | None:
    is_whole = all(run[figure] is not None for stratum in strata for run in stratum)
    return estimate(_values(strata, figure)) if is_whole else None


def _mean(runs: Sequence[Run], figure: str) -> float | None:
    """Over the runs that have it."""
    values = [run[figure] for run in runs if run[figure] is not None]
    return float(np.mean(values)) if values else None


def _further(strata: Sequence[Sequence[Run]], metric: str) -> dict[str, Any]:
    """A further metric of the evaluation by player."""
    return {
        player: estimate([[run["evaluation"][player][metric] for run in stratum] for stratum in strata])
        for player in strata[0][0]["evaluation"]
    }


def _over_tasks(row: Row, sweep: Sweep, lie_in_unit: bool) -> dict[str, Any]:
    strata = [values for task in row.values() for values in _values(task, "policy")]
    runs = [run for task in row.values() for stratum in task for run in stratum]
    return {
        "tasks": len(row),
        "runs": len(runs),
        "solved": sum(run["policy"] >= sweep.solved for run in runs),
        "policy": estimate(strata),
        "profile": profile(strata, LEVELS) if lie_in_unit else None,
    }


def _gains(sweep: Sweep, rows: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
    """By other row: how much of the gain of the second arm of `sweep.gain` over the first it brings, over all `tasks`
    that the three have and in each; None where that gain is not certain."""
    if not sweep.gain or not set(sweep.gain) <= set(rows):
        return {}
    low, high = sweep.gain
    found: dict[str, dict[str, Any]] = {}
    for name in rows:
        tasks = [task for task in rows[name] if task in rows[low] and task in rows[high]]
        if name in sweep.gain or not tasks:
            continue
        of_rows = [[_values(rows[row][task], "policy") for task in tasks] for row in (name, low, high)]
        of_tasks = zip(*of_rows, strict=True)
        found[name] = {
            "all_tasks": share_of_gain(*of_rows),
            "tasks": {
                task: share_of_gain(*([values] for values in of)) for task, of in zip(tasks, of_tasks, strict=True)
            },
        }
    return found


def _against_others(name: str, sweep: Sweep, rows: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
    """By other row: P(improvement), the difference of means, p, and p after Holm's correction over the rows. A row that
    shares an arm with another one of the family (arms taken together) stands for it."""
    own = set(sweep.together.get(name, (name,)))
    in_a_group = {arm for group, arms in sweep.together.items() if group in rows for arm in arms}
    others = [other for other in rows if not own & set(sweep.together.get(other, (other,))) and other not in in_a_group]
    found: dict[str, dict[str, Any]] = {}
    for other in others:
        tasks = [task for task in rows[name] if task in rows[other]]
        if not tasks:
            continue
        ours, theirs = ([_values(rows[row][task], "policy") for task in tasks] for row in (name, other))
        pooled = [[np.concatenate(strata).tolist() for strata in side] for side in (ours, theirs)]
        found[other] = {
            "tasks": len(tasks),
            "improvement": improvement(ours, theirs),
            "difference": difference(ours, theirs),
            "p_one_sided": permutation_test(*pooled),
        }
    adjusted = holm({other: figures["p_one_sided"] for other, figures in found.items()})
    return {other: {**figures, "p_holm": adjusted[other]} for other, figures in found.items()}


def _values(strata: Sequence[Sequence[Run]], figure: str) -> Strata:
    return [[run[figure] for run in stratum] for stratum in strata]
