"""What `minihack_rewards` makes of its runs: figures per run and arm with intervals, tests between arms, a table and a
plot.

Invariant: the unit is a run, never an episode: intervals and tests are over seeds, and over the control's permutations
as strata.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.seed_statistics import estimate, holm, improvement, permutation_test

LATE = 0.2
"""The last share of training that "late" figures cover."""
SOLVED = 0.5
TESTED = ("retrieval", "retrieval_borderline")
"""Arms that are compared with every other one; the tests of each are one family for Holm's correction."""
CONTROL = "permuted"
"""All permutations together, a row of its own: arms whose names begin so are its strata."""
FIGURES = (
    "success",
    "mean_success",
    "late_success",
    "blind_success",
    "goals_per_1000_steps",
    "intrinsic_per_1000_steps",
    "state_information",
)
PLAYERS = ("policy", "blind", "random")


def collect(out: Path, arms: Sequence[str]) -> list[dict[str, Any]]:
    """The finished runs under `out`/runs as JSON values, by arm in the order given, then by seed."""
    runs = []
    for arm in arms:
        for folder in sorted(out.glob(f"runs/{arm}-*"), key=lambda path: int(path.name.rpartition("-")[2])):
            if (folder / "evaluation.json").exists():
                runs.append({"arm": arm, "seed": int(folder.name.rpartition("-")[2]), **_read(folder)})
    return runs


def captions_shown(out: Path) -> Counter[str]:
    """How often the runs showed each caption, all together."""
    shown: Counter[str] = Counter()
    for folder in sorted(out.glob("runs/*")):
        if (folder / "evaluation.json").exists():
            shown.update(dict(_captions(folder)))
    return shown


def _captions(folder: Path) -> list[tuple[str, int]]:
    with sqlite3.connect(folder / "captions.sqlite") as connection:
        rows = connection.execute("SELECT text, count FROM captions").fetchall()
    connection.close()
    return rows


def _read(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["env_steps"], line["episode_success_mean"] or 0.0) for line in lines]
    late = [line for line in lines if line["env_steps"] > (1 - LATE) * summary["env_steps"]]
    policy = evaluation["policy"]
    return {
        "env_steps": summary["env_steps"],
        "episodes": summary["episodes_total"],
        "time_s": summary["time_s"],
        **{f"{player}_success": evaluation[player]["success"]["mean"] for player in PLAYERS if player != "policy"},
        "success": policy["success"]["mean"],
        "length": policy["length"]["mean"],
        "evaluation_episodes": evaluation["episodes"],
        "goals_per_1000_steps": 1000 * policy["success"]["mean"] / policy["length"]["mean"],
        "intrinsic_per_1000_steps": 1000 * float(np.mean([line["intrinsic_reward_mean"] or 0.0 for line in late])),
        "state_information": float(np.mean([line["policy_state_information"] for line in late])),
        "late_success": float(np.mean([line["episode_success_mean"] or 0.0 for line in late])),
        "mean_success": float(np.mean([success for _, success in curve])),
        "solved_at": next((steps for steps, success in curve if success >= SOLVED), None),
        "captions": summary["captions_distinct"],
        "paid": {caption["text"]: caption["count"] for caption in summary["top_rewarded"] if caption["reward"] > 0},
        "curve": [[steps, round(success, 3)] for steps, success in curve],
    }


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Runs, a row per arm (and one of all permutations), and how each of the tested arms compares with every other."""
    groups: dict[str, list[list[Mapping[str, Any]]]] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        members = [run for run in runs if run["arm"] == arm]
        groups[arm] = [members]
    if control := [strata[0] for arm, strata in groups.items() if arm.startswith(CONTROL)]:
        groups[f"{CONTROL}, all"] = control
    comparisons = {arm: _compare(arm, groups) for arm in TESTED if arm in groups}
    return {
        "arms": {arm: _row(strata) for arm, strata in groups.items()},
        "comparisons": comparisons,
        "runs": list(runs),
    }


def _row(strata: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    runs = [run for members in strata for run in members]
    return {
        "seeds": [run["seed"] for run in runs],
        "solved": sum(run["success"] >= SOLVED for run in runs),
        "solved_at": [run["solved_at"] for run in runs],
        **{name: {**estimate(_values(strata, name)), "values": [run[name] for run in runs]} for name in FIGURES},
    }


def _compare(arm: str, groups: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> dict[str, dict[str, Any]]:
    """Against each other arm: probability of improvement, p, and p after Holm; single permutations are in the control's
    row together."""
    against = {
        name: strata
        for name, strata in groups.items()
        if name != arm and not (name.startswith(CONTROL) and "," not in name)
    }
    ours = _values(groups[arm], "success")
    p_values = {
        name: permutation_test(ours[0], np.concatenate(_values(strata, "success")).tolist())
        for name, strata in against.items()
    }
    adjusted = holm(p_values)
    return {
        name: {
            "improvement": improvement(ours, _values(strata, "success")),
            "p_one_sided": p_values[name],
            "p_holm": adjusted[name],
        }
        for name, strata in against.items()
    }


def _values(strata: Sequence[Sequence[Mapping[str, Any]]], name: str) -> list[list[float]]:
    return [[run[name] for run in members] for members in strata]


def markdown(results: Mapping[str, Any]) -> str:
    """The table of arms, and one of comparisons for each tested arm."""
    lines = [
        "| arm | success (IQM) | per run | solved | success over training | blind | goals per 1,000 steps |"
        " information, nats |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, row in results["arms"].items():
        cells = [arm, _show(row["success"]), " ".join(f"{value:.2f}" for value in row["success"]["values"])]
        cells += [
            f"{row['solved']} of {len(row['seeds'])}",
            _show(row["mean_success"]),
            f"{row['blind_success']['value']:.2f}",
        ]
        cells += [f"{row['goals_per_1000_steps']['value']:.1f}", f"{row['state_information']['value']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for arm, versus in results["comparisons"].items():
        lines += ["", f"| `{arm}` against | P(improvement) | p | p, Holm |", "|---|---|---|---|"]
        for name, figures in versus.items():
            lines.append(
                f"| {name} | {_show(figures['improvement'])} | {figures['p_one_sided']:.4f} | {figures['p_holm']:.4f} |"
            )
    return "\n".join(lines) + "\n"


def _show(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Success against environment steps: the interquartile mean over runs of each arm with its 95 % bootstrap band, as
    a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=110)
    strata: dict[str, list[list[Any]]] = {}
    for arm in dict.fromkeys(run["arm"] for run in results["runs"]):
        name = f"{CONTROL}, all" if arm.startswith(CONTROL) else arm
        strata.setdefault(name, []).append([run["curve"] for run in results["runs"] if run["arm"] == arm])
    for index, (arm, parts) in enumerate(strata.items()):
        curves = [curve for part in parts for curve in part]
        length = min(map(len, curves))
        bands = [estimate([[curve[i][1] for curve in part] for part in parts]) for i in range(length)]
        steps = [point[0] for point in curves[0][:length]]
        label, dashed = f"{arm} ({len(curves)} runs)", arm not in TESTED
        axes.plot(
            steps, [band["value"] for band in bands], color=f"C{index}", label=label, linestyle="--" if dashed else "-"
        )
        axes.fill_between(
            steps,
            [band["low"] for band in bands],
            [band["high"] for band in bands],
            color=f"C{index}",
            alpha=0.15,
            lw=0,
        )
    axes.set(
        xlabel="environment steps", ylabel="success, last 100 episodes", ylim=(-0.02, 1.02), title=results["preset"]
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
