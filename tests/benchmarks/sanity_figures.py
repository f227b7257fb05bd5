"""What `sanity` makes of its results: per task the ratio of both arms' mean returns with an interval, and the tables of
the document.

Invariant: the unit is a run, never an episode: means and intervals are over seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.benchmarks.sanity_tasks import TASKS

RESAMPLES = 10_000
WANTED_RATIO = 0.9


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By task: every arm's values in the order of seeds; the ratios ours / reference of final returns and of the whole
    curve's mean."""
    tasks: dict[str, Any] = {}
    for name, task in TASKS.items():
        arms: dict[str, Any] = {}
        for arm in ("ours", "reference", "random"):
            runs = sorted(
                (run for run in results if (run["task"], run["arm"]) == (name, arm)), key=lambda run: run["seed"]
            )
            if runs:
                arms[arm] = {"seeds": [run["seed"] for run in runs], "final": [run["final"] for run in runs]}
                arms[arm] |= {
                    key: [run[key] for run in runs] for key in ("success", "time_s") if all(key in run for run in runs)
                }
                arms[arm] |= (
                    {"pace": [pace(run["curve"]) for run in runs]} if all("curve" in run for run in runs) else {}
                )
        if not arms:
            continue
        tasks[name] = {"env_steps": task.env_steps, "source": task.source, "arms": arms}
        if "ours" in arms and "reference" in arms:
            for key in ("final", "pace"):
                tasks[name][f"{key}_ratio"] = ratio(arms["ours"][key], arms["reference"][key])
        if "ours" in arms and "success" in arms["ours"] and task.solved is not None:
            tasks[name]["success"] = mean_interval(arms["ours"]["success"])
    return tasks


def pace(curve: Sequence[Sequence[float]]) -> float:
    """The mean over a training curve of [steps, return], which its points divide equally: what was earned on the
    way."""
    return float(np.mean([value for _, value in curve]))


def ratio(ours: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Of the means over seeds, with its 95 % percentile bootstrap interval, both arms drawn anew (Efron 1979);
    seeded."""
    rng = np.random.default_rng(0)
    a, b = (
        rng.choice(np.asarray(values, np.float64), (RESAMPLES, len(values))).mean(axis=1)
        for values in (ours, reference)
    )
    low, high = np.percentile(a / b, [2.5, 97.5])
    return {"mean": float(np.mean(ours) / np.mean(reference)), "low": float(low), "high": float(high)}


def mean_interval(values: Sequence[float]) -> dict[str, float]:
    """The mean over seeds with its 95 % percentile bootstrap interval; seeded."""
    means = np.random.default_rng(0).choice(np.asarray(values, np.float64), (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def markdown(tasks: Mapping[str, Any]) -> str:
    """The tables of docs/results/sanity.md."""
    lines = [
        "| task | environment steps | random | reference, mean (seeds) | ours, mean (seeds) | ratio of final"
        " returns [95 %] |"
        " ratio over the whole curve [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in tasks.items():
        arms = task["arms"]
        if TASKS[name].reference:
            cells = [
                name,
                f"{task['env_steps']:,}",
                f"{np.mean(arms['random']['final']):.3g}" if "random" in arms else "",
            ]
            cells += [_values(arms[arm]["final"]) if arm in arms else "" for arm in ("reference", "ours")]
            cells += [_interval(task[key]) if key in task else "" for key in ("final_ratio", "pace_ratio")]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| memory task | environment steps | random | success, mean [95 %] | per seed |",
        "|---|---|---|---|---|",
    ]
    for name, task in tasks.items():
        if "success" in task:
            cells = [name, f"{task['env_steps']:,}"]
            cells += [f"{np.mean(task['arms']['random']['success']):.2f}" if "random" in task["arms"] else ""]
            cells += [_interval(task["success"]), " ".join(f"{value:.2f}" for value in task["arms"]["ours"]["success"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _values(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3g} ({' '.join(f'{value:.3g}' for value in values)})"


def _interval(figure: Mapping[str, float]) -> str:
    if not np.isfinite([figure["low"], figure["high"]]).all():  # among resampled seeds of the reference none learnt
        return f"{figure['mean']:.2f} (no interval)"
    return f"{figure['mean']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"
