"""What `scaling` shows of its report: tables in Markdown, and a figure with one panel per part.

Invariant: everything comes from the report, nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = {
    "worker": ("worker",),
    "learner": ("learner",),
    "annotation": ("annotator", "service"),
    "Ray": ("ray", "driver"),
}
"""Columns of CPU time, and the roles that each sums."""


def markdown(result: Mapping[str, Any]) -> str:
    """A table per part, then where and when."""
    blocks = []
    for part, rows in by_part(result).items():
        lines = [
            f"| {part} | batch, frames | frames/s | "
            + " | ".join(f"{column}, CPU µs/frame" for column in COLUMNS)
            + " |"
        ]
        lines += ["|" + "---|" * (3 + len(COLUMNS))]
        for row in rows:
            low, high = row["frames_per_s_spread"]
            cells = [
                f"{row['value']:,}",
                f"{row['batch_frames']:,}",
                f"{row['frames_per_s']:,.0f}" + (f" ({low:,.0f} to {high:,.0f})" if low < high else ""),
            ]
            cells += [f"{value:.1f}" for value in cpu_columns(row).values()]
            lines.append(f"| {' | '.join(cells)} |")
        blocks.append("\n".join(lines))
    if result["captions"]:
        lines = [
            "| captions in the table | look-up of 4096 ids, µs | relabelling, µs/frame | building a version, ms |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row['captions']:,} | {row['look_up_us']:,.0f} | {row['relabel_us_per_frame']:.3f} |"
            f" {row['build_ms']:,.1f} |"
            for row in result["captions"]
        ]
        blocks.append("\n".join(lines))
    on = result["machine"]
    blocks.append(
        f"{on['processor']}, {on['cores']} cores, load {on['load_average']}; commit {result['commit']};"
        f" {result['date']}"
    )
    return "\n\n".join(blocks)


def by_part(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The report's points by what grows in them."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in result["points"]:
        parts.setdefault(row["part"], []).append(row)
    return parts


def cpu_columns(row: Mapping[str, Any]) -> dict[str, float]:
    """CPU time per frame (µs) of a point by column."""
    return {column: sum(row["cpu_us_per_frame"].get(role, 0.0) for role in roles) for column, roles in COLUMNS.items()}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Frames/s with its spread and CPU time per frame of each part; look-ups against captions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = by_part(result)
    panels = len(parts) + bool(result["captions"])
    figure, grid = pyplot.subplots(
        2 if parts else 1, panels, figsize=(3.6 * panels, 6 if parts else 3.4), dpi=110, squeeze=False
    )
    for column, (part, rows) in enumerate(parts.items()):
        _draw_rates(grid[0][column], part, rows)
        _draw_costs(grid[1][column], part, rows)
    if result["captions"]:
        _draw_captions(grid[0][-1], result["captions"])
        for axes in grid[1:, -1]:
            axes.set_axis_off()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _draw_rates(axes: Any, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
    values, rates = [row["value"] for row in rows], [row["frames_per_s"] for row in rows]
    below = [rate - row["frames_per_s_spread"][0] for rate, row in zip(rates, rows, strict=True)]
    above = [row["frames_per_s_spread"][1] - rate for rate, row in zip(rates, rows, strict=True)]
    axes.errorbar(values, rates, yerr=[below, above], marker="o", capsize=3, label="measured")
    if part == "workers":
        axes.plot(
            values,
            [rates[0] * value / values[0] for value in values],
            linestyle=":",
            color="grey",
            label="in proportion",
        )
        axes.legend(fontsize=8)
    axes.set(
        xlabel=part, ylabel="frames/s", xscale="linear" if part == "workers" else "log", ylim=(0, 1.2 * max(rates))
    )
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _draw_costs(axes: Any, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
    values, costs = [row["value"] for row in rows], [cpu_columns(row) for row in rows]
    axes.stackplot(values, *([cost[column] for cost in costs] for column in COLUMNS), labels=list(COLUMNS), alpha=0.7)
    highest = max(sum(cost.values()) for cost in costs)
    axes.set(xlabel=part, ylabel="CPU µs per frame", xscale="log", ylim=(0, 1.45 * highest))  # room for the legend
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.legend(fontsize=7, loc="upper right")


def _draw_captions(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    sizes = [row["captions"] for row in rows]
    axes.plot(sizes, [row["relabel_us_per_frame"] for row in rows], marker="o", label="relabelling")
    axes.plot(sizes, [row["look_up_us"] / 4096 for row in rows], marker="o", label="of it the look-up")
    axes.set(xlabel="captions in the table", ylabel="µs per frame", xscale="log", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
