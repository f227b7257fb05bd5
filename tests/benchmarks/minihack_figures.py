"""What `minihack_rewards` makes of its runs: figures per run and arm with intervals, tests between arms, a table and a plot.

Invariant: the unit is a run, never an episode: intervals and tests are over seeds.
"""

import itertools
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LATE = 0.2
"""The last share of training that "late" figures cover."""
SOLVED = 0.5
COMPARED_WITH = "retrieval"


def collect(out: Path, arms: Sequence[str]) -> list[dict[str, Any]]:
    """The finished runs under `out`/runs as JSON values, by arm in the order given, then by seed."""
    runs = []
    for arm in arms:
        for folder in sorted(out.glob(f"runs/{arm}-*"), key=lambda path: int(path.name.rpartition("-")[2])):
            if (folder / "evaluation.json").exists():
                runs.append({"arm": arm, "seed": int(folder.name.rpartition("-")[2]), **_read(folder)})
    return runs


def _read(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["env_steps"], line["episode_success_mean"] or 0.0) for line in lines]
    late = [success for steps, success in curve if steps > (1 - LATE) * summary["env_steps"]]
    with sqlite3.connect(folder / "captions.sqlite") as connection:
        judged = connection.execute("SELECT text, probability, count FROM captions WHERE probability IS NOT NULL").fetchall()
    return {
        "env_steps": summary["env_steps"],
        "episodes": summary["episodes_total"],
        "time_s": summary["time_s"],
        "success": evaluation["policy"]["success"]["mean"],
        "length": evaluation["policy"]["length"]["mean"],
        "random_success": evaluation["random"]["success"]["mean"],
        "evaluation_episodes": evaluation["episodes"],
        "late_success": float(np.mean(late)),
        "mean_success": float(np.mean([success for _, success in curve])),
        "solved_at": next((steps for steps, success in curve if success >= SOLVED), None),
        "captions": summary["captions_distinct"],
        "rewarded": [{key: caption[key] for key in ("text", "reward", "probability", "count")} for caption in summary["top_rewarded"]],
        "judged": sorted(([text, round(p, 3), count] for text, p, count in judged), key=lambda row: -row[1])[:12],
        "curve": [[steps, round(success, 3)] for steps, success in curve],
    }


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Runs, a row per arm, and how `retrieval` compares with every other arm."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], []).append(run)
    arms = {}
    for arm, members in by_arm.items():
        arms[arm] = {name: interval([run[name] for run in members]) for name in ("success", "late_success", "mean_success")}
        arms[arm] |= {"seeds": [run["seed"] for run in members], "solved": sum(run["success"] >= SOLVED for run in members)}
        arms[arm]["solved_at"] = [run["solved_at"] for run in members]
    comparisons = {}
    for arm in by_arm:
        if COMPARED_WITH in by_arm and arm != COMPARED_WITH:
            comparisons[arm] = {
                name: compare([run[name] for run in by_arm[COMPARED_WITH]], [run[name] for run in by_arm[arm]])
                for name in ("success", "mean_success")
            }
    control = [_moved(run, by_arm.get(COMPARED_WITH, [])) for run in by_arm.get("permuted", [])]
    return {"arms": arms, "comparisons": comparisons, "control": control, "runs": list(runs)}


def interval(values: Sequence[float], resamples: int = 10_000) -> dict[str, Any]:
    """Mean over seeds with its 95 % percentile bootstrap interval (Efron 1979), the median, and the values; seeded."""
    array = np.asarray(values, np.float64)
    means = np.random.default_rng(0).choice(array, (resamples, len(array))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(array.mean()), "low": float(low), "high": float(high), "median": float(np.median(array)), "values": list(values)}


def compare(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Difference of means (first - second), its bootstrap interval, and the exact one-sided p of a permutation test over all
    ways to split the runs: the share of splits whose difference is at least as large. With 5 and 5 runs it is at least 1/252."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    rng = np.random.default_rng(0)
    differences = rng.choice(a, (10_000, len(a))).mean(axis=1) - rng.choice(b, (10_000, len(b))).mean(axis=1)
    low, high = np.percentile(differences, [2.5, 97.5])
    joined, observed = np.concatenate([a, b]), a.mean() - b.mean()
    splits = [list(rows) for rows in itertools.combinations(range(len(joined)), len(a))]
    at_least = sum(joined[rows].mean() - np.delete(joined, rows).mean() >= observed - 1e-12 for rows in splits)
    return {"difference": float(observed), "low": float(low), "high": float(high), "p_one_sided": at_least / len(splits)}


def _moved(run: Mapping[str, Any], judged_runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of a permuted run: the captions that are paid for, and how many of those that the judge would pay for still are."""
    paid = {caption["text"]: caption["count"] for caption in run["rewarded"] if caption["reward"] > 0}
    judged = {caption["text"] for other in judged_runs for caption in other["rewarded"] if caption["reward"] > 0}
    return {"seed": run["seed"], "paid": paid, "judged": sorted(judged), "kept": sorted(judged & set(paid))}


def markdown(results: Mapping[str, Any]) -> str:
    """The table of arms."""
    lines = [
        "| arm | success after training (held-out seeds) | per seed | solved | mean success over training | retrieval minus arm | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, row in results["arms"].items():
        cells = [arm, _show(row["success"]), " ".join(f"{value:.2f}" for value in row["success"]["values"])]
        cells += [f"{row['solved']} of {len(row['seeds'])}", _show(row["mean_success"])]
        versus = results["comparisons"].get(arm, {}).get("success")
        cells += (
            [f"{versus['difference']:+.2f} [{versus['low']:+.2f}, {versus['high']:+.2f}]", f"{versus['p_one_sided']:.3f}"]
            if versus
            else ["", ""]
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _show(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Success against environment steps: the mean over seeds of each arm with its 95 % bootstrap band, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=110)
    for index, arm in enumerate(results["arms"]):
        curves = [run["curve"] for run in results["runs"] if run["arm"] == arm]
        length = min(map(len, curves))
        steps = [point[0] for point in curves[0][:length]]
        bands = [interval([curve[i][1] for curve in curves], resamples=2000) for i in range(length)]
        label = f"{arm} ({len(curves)} seeds)"
        axes.plot(steps, [band["mean"] for band in bands], color=f"C{index}", label=label, linestyle="--" if arm == "permuted" else "-")
        axes.fill_between(steps, [band["low"] for band in bands], [band["high"] for band in bands], color=f"C{index}", alpha=0.15, lw=0)
    axes.set(xlabel="environment steps", ylabel="success, last 100 episodes", ylim=(-0.02, 1.02), title=results["preset"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
