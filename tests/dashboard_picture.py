"""`python -m tests.dashboard_picture`: draws docs/dashboard.png, the panels of the Grafana dashboard as a real run
fills them.

Grafana itself is in no package registry, so its part is played by matplotlib: titles, places, units, stacking and
thresholds are read from the generated dashboard, and the data come through its queries from a Prometheus that scrapes
the run.

Invariant: nothing is drawn that the dashboard's JSON does not ask for.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from cluster.dashboards.grafana import ROW_WIDTH, dashboard
from tests.prometheus_server import Prometheus, filled
from tests.run_processes import lines, wait_until
from tests.watched_run import watched_run

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

UNIT_INCHES = (0.52, 0.2)
"""Width and height of a cell of Grafana's grid."""
BACKGROUND, PANEL, TEXT = "#111217", "#181b1f", "#ccccdc"
COLOURS = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}
LINES = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#b877d9", "#8ab8ff")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0."""
    parser = argparse.ArgumentParser(description="Draw the dashboard's panels as a real run fills them, by matplotlib.")
    parser.add_argument("--out", type=Path, default=Path("docs/dashboard.png"))
    parser.add_argument("--minutes", type=float, default=6.0, help="of the run (%(default)g)")
    parser.add_argument(
        "settings", nargs="*", help="key=value of the run, in front of which stands --preset nethack_score"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work, watched_run(Path(work), "nethack_score", *options.settings) as run:
        wait_until(lambda: lines(run.run_dir), run.process, run.log)
        time.sleep(60 * options.minutes)
        draw(run.prometheus, options.minutes, options.out)
    return 0


def draw(prometheus: Prometheus, minutes: float, path: Path) -> None:
    """All panels with the last minutes of every run that Prometheus knows."""
    model = dashboard()
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in model["panels"])
    inches = (ROW_WIDTH * UNIT_INCHES[0], height * UNIT_INCHES[1])
    figure = pyplot.figure(figsize=inches, facecolor=BACKGROUND)
    for panel in model["panels"]:
        at = panel["gridPos"]
        left, bottom = at["x"] / ROW_WIDTH, 1 - (at["y"] + at["h"]) / height
        width, tall = at["w"] / ROW_WIDTH, at["h"] / height
        if panel["type"] == "row":
            figure.text(
                left + 0.006, bottom + 0.2 * tall, f"⌄ {panel['title']}", color=TEXT, fontsize=11, weight="bold"
            )
            continue
        margin = (0.4 / inches[0], 0.3 / inches[1])
        axes = figure.add_axes(
            (left + margin[0], bottom + margin[1], width - 1.3 * margin[0], tall - 2 * margin[1]), facecolor=PANEL
        )
        axes.set_title(panel["title"], color=TEXT, fontsize=8, loc="left", pad=3)
        _draw_panel(axes, panel, _series(prometheus, panel, minutes))
    figure.savefig(path, dpi=72, facecolor=BACKGROUND)


def _series(prometheus: Prometheus, panel: dict[str, Any], minutes: float) -> dict[str, list[tuple[float, float]]]:
    """Points (minutes ago as a negative number, value) by what the legend says."""
    now, found = time.time(), {}
    for target in panel["targets"]:
        query = filled(target["expr"], {"run": [".*"], "SessionName": [".*"]})
        for series in prometheus.series(query, minutes=minutes, step_s=5):
            name = target["legendFormat"].replace("{{run}}", series["metric"]["run"])
            found[name] = [((at - now) / 60, float(text)) for at, text in series["values"]]
    return found


def _draw_panel(axes: Axes, panel: dict[str, Any], series: dict[str, list[tuple[float, float]]]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(colors=TEXT, labelsize=6, length=0)
    axes.grid(color="#2c3235", linewidth=0.5)
    defined = {name: points for name, points in series.items() if not all(math.isnan(value) for _, value in points)}
    if panel["type"] == "stat":
        return _draw_stat(axes, defaults, defined)
    if not defined:
        axes.text(
            0.5,
            0.5,
            "not defined in this run",
            color=TEXT,
            fontsize=7,
            ha="center",
            va="center",
            transform=axes.transAxes,
        )
    elif defaults["custom"]["stacking"]["mode"] == "normal":
        times = [at for at, _ in next(iter(defined.values()))]
        values = [[0.0 if math.isnan(value) else value for _, value in points] for points in defined.values()]
        axes.stackplot(times, values, labels=list(defined), colors=LINES, alpha=0.6)
    else:
        for colour, (name, points) in zip(LINES, defined.items(), strict=False):
            axes.plot(*zip(*points, strict=True), label=name, color=colour, linewidth=1)
    if "min" in defaults:
        axes.set_ylim(defaults["min"], defaults["max"])
    for step in defaults.get("thresholds", {"steps": []})["steps"][1:]:
        axes.axhline(step["value"], color=COLOURS["red"], linestyle="--", linewidth=0.7)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _written(value, defaults["unit"])))
    if defined:
        axes.legend(fontsize=5.5, loc="upper left", labelcolor=TEXT, facecolor=PANEL, edgecolor=PANEL, framealpha=0.6)


def _draw_stat(axes: Axes, defaults: dict[str, Any], series: dict[str, list[tuple[float, float]]]) -> None:
    axes.set_axis_off()
    text, colour = "not defined", TEXT
    for points in series.values():
        value = [value for _, value in points if not math.isnan(value)][-1]
        step = [step for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]][-1]
        named = {
            key: mapping["text"]
            for entry in defaults["mappings"]
            if entry["type"] == "value"
            for key, mapping in entry["options"].items()
        }
        text, colour = named.get(f"{value:g}", _written(value, defaults["unit"])), COLOURS[step["color"]]
    axes.text(0.5, 0.45, text, color=colour, fontsize=13, ha="center", va="center", transform=axes.transAxes)


def _written(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    for size, letter in ((1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}" + (" s" if unit == "s" else "")


if __name__ == "__main__":
    sys.exit(main())
