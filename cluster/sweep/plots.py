"""A sweep's comparison as pictures: learning curves per task, and the performance profile over all tasks.

Invariant: a function of the results' JSON values alone; needs matplotlib, which is an extra.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.sweep.statistics import estimate
from configs.checks import ConfigError

COLUMNS = 3
MAX_POINTS = 50


def draw(results: Mapping[str, Any], out: Path) -> list[Path]:
    """Write curves.png, and profile.png for several tasks with a metric in [0, 1], into the folder `out`; the
    files. Raises ConfigError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install 'delphi-rl[compare]'") from None
    matplotlib.use("Agg")
    files = [_curves(results, out / "curves.png")]
    has_tasks = sum(map(bool, results["tasks"].values())) > 1
    if has_tasks and all(row["profile"] for row in results["all_tasks"].values()):
        files.append(_profile(results, out / "profile.png"))
    return files


def _curves(results: Mapping[str, Any], path: Path) -> Path:
    from matplotlib import pyplot

    tasks = [task for task, rows in results["tasks"].items() if rows]
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5 * columns + 1.5, 3.6 * rows), dpi=110, squeeze=False)
    names = list(results["all_tasks"])
    for task, place in zip(tasks, axes.flat, strict=False):
        for name in names:
            of_arm = [run for run in results["runs"] if (run["task"], run["arm"]) == (task, name)]
            curves = [run["curve"] for run in of_arm if run["curve"]]
            if curves:
                _curve(place, curves, f"C{names.index(name)}", name)
        place.set(title=task, xlabel="environment steps", ylabel=f"{results['metric']} in training")
        place.grid(alpha=0.3)
    for place in list(axes.flat)[len(tasks) :]:
        place.set_visible(False)
    handles: dict[str, Any] = {}
    for place in axes.flat:
        lines, labels = place.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="center right")
    figure.tight_layout(rect=(0, 0, 1 - 1.4 / figure.get_figwidth(), 1))
    figure.savefig(path)
    pyplot.close(figure)
    return path


def _curve(place: Any, curves: Sequence[Sequence[Sequence[float]]], colour: str, label: str) -> None:
    """The interquartile mean over runs at steps that all have, with its 95 % band."""
    last = min(curve[-1][0] for curve in curves)
    steps = np.linspace(0, last, MAX_POINTS + 1)[1:]
    values = np.array([np.interp(steps, *np.transpose(curve)) for curve in curves])  # [runs, points]
    bands = [estimate([column]) for column in values.T]
    place.plot(steps, [band["value"] for band in bands], color=colour, label=label)
    low, high = ([band[end] for band in bands] for end in ("low", "high"))
    place.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)


def _profile(results: Mapping[str, Any], path: Path) -> Path:
    from matplotlib import pyplot

    from cluster.sweep.comparison import LEVELS

    figure, place = pyplot.subplots(figsize=(7, 4), dpi=110)
    for index, (name, row) in enumerate(results["all_tasks"].items()):
        place.step(LEVELS, [level["value"] for level in row["profile"]], color=f"C{index}", label=name, where="post")
    place.set(xlabel=f"{results['metric']} (level)", ylabel="share of runs above the level", ylim=(-0.02, 1.02))
    place.grid(alpha=0.3)
    place.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return path
