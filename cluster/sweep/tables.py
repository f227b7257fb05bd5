"""A sweep's comparison as Markdown: what was run, a table over all tasks, one per task, and the tests.

Invariant: a function of the results' JSON values alone, so that the tables can be made again from the file.
"""

from collections.abc import Iterator, Mapping
from typing import Any


def markdown(results: Mapping[str, Any]) -> str:
    """The whole page."""
    return "\n".join([*_head(results), *_all_tasks(results), *_tasks(results), *_comparisons(results)]) + "\n"


def _head(results: Mapping[str, Any]) -> Iterator[str]:
    on = results["machine"]
    commits = ", ".join(f"`{_short(commit)}`" for commit in results["commits"]) or "none"
    yield f"# {results['title']}: results"
    yield ""
    yield (
        f"{len(results['runs'])} runs; {results['metric']} of {results['episodes']} held-out episodes per run and"
        f" player; commits of the runs: {commits}; compared on {on['processor']}, {on['cores']} cores. Made by"
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
    yield from ("", "## All tasks", "", f"| arm | {results['metric']} | solved | tasks |", "|---|---|---|---|")
    for arm, row in results["all_tasks"].items():
        yield f"| {arm} | {interval(row['policy'])} | {row['solved']} of {row['runs']} | {row['tasks']} |"


def _tasks(results: Mapping[str, Any]) -> Iterator[str]:
    for task, rows in results["tasks"].items():
        if not rows:
            continue
        steps = sorted({run["env_steps"] for run in results["runs"] if run["task"] == task})
        random = next(iter(rows.values()))["random"]
        yield from ("", f"## {task}", "", f"{steps[-1]:,} environment steps; a random player has {random:.2f}.", "")
        yield (
            f"| arm | {results['metric']} | per run | solved | over training | blind | per 1,000 steps |"
            " information, nats | labels | s |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for arm, row in rows.items():
            per_run = " ".join(f"{value:.2f}" for value in row["values"])
            labels = "-" if row["labels"] is None else f"{row['labels']:,.0f}"
            cells = [arm, interval(row["policy"]), per_run, f"{row['solved']} of {len(row['values'])}"]
            cells += [interval(row["over_training"]) if row["over_training"] else "-", f"{row['blind']['value']:.2f}"]
            cells += [f"{row['per_1000_steps']['value']:.2f}", f"{row['state_information']['value']:.2f}"]
            yield f"| {' | '.join([*cells, labels, format(row['seconds'], '.0f')])} |"


def _comparisons(results: Mapping[str, Any]) -> Iterator[str]:
    for arm, others in results["comparisons"].items():
        yield from ("", f"## {arm} against the others", "")
        yield "| against | difference of means | P(improvement) | p | p, Holm | tasks |"
        yield "|---|---|---|---|---|---|"
        for other, row in others.items():
            yield (
                f"| {other} | {row['difference']:+.2f} | {interval(row['improvement'])} | {row['p_one_sided']:.4f} |"
                f" {row['p_holm']:.4f} | {row['tasks']} |"
            )
        yield ""
        yield (
            "P(improvement) is the probability that a run of this arm exceeds one of the other on the same task, ties"
            " counted half, averaged over tasks; p is of the one-sided permutation test of the means within tasks;"
            " Holm's correction is over this table's rows."
        )


def _short(commit: str) -> str:
    """Ten digits, and the mark of a changed checkout."""
    digits, *mark = commit.partition("-")
    return digits[:10] + "".join(mark)


def interval(figure: Mapping[str, float]) -> str:
    """`0.51 [0.26, 0.60]`."""
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"
