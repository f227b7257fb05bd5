"""Several runs as groups: runs of one experiment that differ in their seed alone, and their curves together.

Invariant: the unit is a run; a point of a group's curve is drawn only where every run of the group has a value.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.report.curves import ACROSS_SEEDS, Chart, drawn, rounded
from cluster.report.reading import RunRecord
from configs.loading import experiment_diff, to_dict

POINTS = 50
"""Of a group's curve; a run's value at one is the mean of its metric lines around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs of one configuration."""

    label: str
    runs: list[RunRecord]


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """The runs by configuration, labelled by what differs between the groups."""
    groups: list[list[RunRecord]] = []
    for run in runs:
        home = next((group for group in groups if not _differences(group[0], run)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    changed = {key for group in groups[1:] for key in _differences(groups[0][0], group[0])}
    return [Group(label=_label(group[0], sorted(changed)), runs=group) for group in groups]


def group_charts(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Interquartile mean over the runs of each group with its 95 % bootstrap interval, for each chart that any of them
    fills."""
    ends = [run.env_steps for group in groups for run in group.runs]
    edges = np.linspace(0, max(ends, default=0), POINTS + 1)
    found = []
    for chart in ACROSS_SEEDS:
        series = [one for group in groups if (one := _series(chart, group, edges))]
        if series:
            found.append(drawn(chart, edges[1:].tolist(), series))
    return found


def _series(chart: Chart, group: Group, edges: np.ndarray) -> dict[str, Any] | None:
    """The curve of a group, named by it; None where no point has a value of every run."""
    from cluster.sweep.statistics import estimate

    values = np.array([_binned(run.lines, chart.names[0], edges) for run in group.runs])  # [runs, POINTS]
    is_whole = np.isfinite(values).all(axis=0)
    if not is_whole.any():
        return None
    points = [estimate([values[:, at].tolist()]) if is_whole[at] else None for at in range(POINTS)]
    return {
        "name": f"{group.label} ({len(group.runs)} {'run' if len(group.runs) == 1 else 'runs'})",
        **{
            key: [rounded([point[part]])[0] if point else None for point in points]
            for key, part in (("y", "value"), ("low", "low"), ("high", "high"))
        },
    }


def _binned(lines: Sequence[Mapping[str, Any]], name: str, edges: np.ndarray) -> np.ndarray:
    """[POINTS] the mean of a metric between two edges, held where a run writes fewer lines than that; NaN before its
    first value and after its last line."""
    known = [(line["env_steps"], line[name]) for line in lines if line.get(name) is not None]
    found = np.full(len(edges) - 1, np.nan)
    if not known:
        return found
    steps, values = np.array(known, np.float64).T
    for at, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (steps > low) & (steps <= high)
        if inside.any():
            found[at] = values[inside].mean()
        elif steps[0] <= low and steps[-1] > high:
            found[at] = values[steps <= low][-1]
    return found


def _differences(one: RunRecord, other: RunRecord) -> dict[str, str]:
    """The settings in which two runs are different experiments, but the seed."""
    lines = (line.split(": ", 1) for line in experiment_diff(to_dict(one.config), to_dict(other.config)))
    return {key: change for key, change in lines if key != "seed"}


def _label(run: RunRecord, keys: Sequence[str]) -> str:
    if not keys:
        return f"{run.config.env.id}, {run.config.reward_model.name}"
    values = to_dict(run.config)
    return ", ".join(f"{key}={json.dumps(_value(values, key))}" for key in keys)


def _value(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
