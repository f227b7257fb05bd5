"""A sweep's comparison as Markdown: what was run, a table over all tasks, the tests, and tables of each task.

Invariant: a function of the results' JSON values alone, so that the tables can be made again from the file.
"""

from collections.abc import Iterator, Mapping
from typing import Any


def markdown(results: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = (_head, _all_tasks, _comparisons, _gains, _tasks)
    return "\n".join(line for part in parts for line in part(results)) + "\n"


def _head(results: Mapping[str, Any]) -> Iterator[str]:
    commits = ", ".join(f"`{_short(commit)}`" for commit in results["commits"]) or "none"
    yield f"# {results['title']}: results"
    yield ""
    yield (
        f"{len(results['runs'])} runs; {results['metric']} of {results['episodes']} held-out episodes per run and"
        f" player; commits of the runs: {commits}; on {' and '.join(results['processors'])}. Made by"
        " `delphi sweep`; do not edit."
    )
    yield ""
    yield (
        "Values are interquartile means over runs with 95 % percentile intervals of a bootstrap over runs, stratified"
        f" by task. A run counts as solved from {results['solved']:g} on. `blind` draws from the policy's action"
        " frequencies without looking."
    )


def _all_tasks(results: Mapping[str, Any]) -> Iterator[str]:
    is_comparable = all(row["profile"] for row in results["all_tasks"].values())  # returns of two games are not
    if len(results["tasks"]) < 2 or not is_comparable:
        return
    yield from ("", "## All tasks", "")
    yield from _header("arm", results["metric"], "solved", "tasks")
    for arm, row in results["all_tasks"].items():
        yield _line(arm, interval(row["policy"]), f"{row['solved']} of {row['runs']}", str(row["tasks"]))


def _comparisons(results: Mapping[str, Any]) -> Iterator[str]:
    for arm, others in results["comparisons"].items():
        yield from ("", f"## {arm} against the others", "")
        yield from _header("against", "difference of means", "P(improvement)", "p", "p, Holm", "tasks")
        for other, row in others.items():
            p_values = (f"{row['p_one_sided']:.4f}", f"{row['p_holm']:.4f}")
            yield _line(
                other, interval(row["difference"], "+"), interval(row["improvement"]), *p_values, str(row["tasks"])
            )
        yield ""
        yield (
            "P(improvement) is the probability that a run of this arm exceeds one of the other on the same task, ties"
            " counted half, averaged over tasks; p is of the one-sided permutation test of the means within tasks;"
            " Holm's correction is over this table's rows."
        )


def _gains(results: Mapping[str, Any]) -> Iterator[str]:
    if not results["gains"]:
        return
    low, high = results["gain"]
    tasks = [task for task in results["tasks"] if any(task in row["tasks"] for row in results["gains"].values())]
    yield from ("", f"## Share of the gain of {high} over {low}", "")
    yield from _header("arm", "all tasks", *tasks)
    for arm, row in results["gains"].items():
        shares = [row["all_tasks"], *(row["tasks"].get(task) for task in tasks)]
        yield _line(arm, *(interval(share) if share else "-" for share in shares))
    yield ""
    yield (
        f"The mean minus that of {low}, divided by the mean of {high} minus that of {low}; `-` where {high} is not"
        f" certainly above {low}."
    )


def _tasks(results: Mapping[str, Any]) -> Iterator[str]:
    for task, rows in results["tasks"].items():
        if not rows:
            continue
        steps = sorted({run["env_steps"] for run in results["runs"] if run["task"] == task})
        random = next(iter(rows.values()))["random"]
        yield from ("", f"## {task}", "", f"{steps[-1]:,} environment steps; a random player has {random:.2f}.", "")
        of_training = ("over training", "blind", "per 1,000 steps", "information, nats")
        yield from _header("arm", results["metric"], "per run", "solved", *of_training)
        for arm, row in rows.items():
            per_run = " ".join(f"{value:.2f}" for value in row["values"])
            cells = [arm, interval(row["policy"]), per_run, f"{row['solved']} of {len(row['values'])}"]
            cells += [interval(row["over_training"]) if row["over_training"] else "-", f"{row['blind']['value']:.2f}"]
            yield _line(*cells, f"{row['per_1000_steps']['value']:.2f}", f"{row['state_information']['value']:.2f}")
        yield from _further(rows)
        yield from _cost(rows, results["solved"])


def _further(rows: Mapping[str, Any]) -> Iterator[str]:
    """The sweep's further metrics: of the policy, of a blind player, and of a random one."""
    metrics = next(iter(rows.values()))["metrics"]
    if not metrics:
        return
    yield ""
    yield from _header("arm", *metrics)
    for arm, row in rows.items():
        yield _line(
            arm, *(f"{interval(of['policy'])}, blind {of['blind']['value']:.2f}" for of in row["metrics"].values())
        )
    yield _line("a random player", *(f"{of['random']['value']:.2f}" for of in metrics.values()))


def _cost(rows: Mapping[str, Any], solved: float) -> Iterator[str]:
    """What each arm cost: means over runs, and the median of the steps that the runs needed."""
    yield ""
    yield from _header("arm", f"steps to {solved:g} in training", "labels", "forward passes of the judge", "seconds")
    for arm, row in rows.items():
        reached = sorted(steps for steps in row["solved_at"] if steps is not None)
        middle = f"{reached[(len(reached) - 1) // 2]:,}, " if reached else ""
        needed = f"{middle}{len(reached)} of {len(row['solved_at'])} runs"
        figures = (row[figure] for figure in ("labels", "forward_passes", "seconds"))
        yield _line(arm, needed, *("-" if figure is None else f"{figure:,.0f}" for figure in figures))


def _header(*names: str) -> tuple[str, str]:
    return _line(*names), "|" + "---|" * len(names)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _short(commit: str) -> str:
    """Ten digits, and the mark of a changed checkout."""
    digits, *mark = commit.partition("-")
    return digits[:10] + "".join(mark)


def interval(figure: Mapping[str, float], sign: str = "") -> str:
    """`0.51 [0.26, 0.60]`; with `+`, the numbers have signs."""
    return "{:{s}.2f} [{:{s}.2f}, {:{s}.2f}]".format(figure["value"], figure["low"], figure["high"], s=sign)
