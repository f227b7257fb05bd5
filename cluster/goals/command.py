"""`delphi goals`: the goal book of a run as a table.

Invariant: reads the newest checkpoint, and writes nothing.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from configs.paths import path_argument
from llm_server.standard_output import guarded

MIN_WIDTH = 20
"""Of the column of texts, in characters."""
ORDERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "number": lambda goal: goal["goal"],
    "paid": lambda goal: -abs(goal["paid"]),
    "achieved": lambda goal: -goal["achieved"],
    "success": lambda goal: -(goal["success"] or 0.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 an invalid command, or a run without goals."""
    parser = argparse.ArgumentParser(
        prog="delphi goals",
        description="Print the goals of a run, from its newest checkpoint: where each came from, in how many states it"
        " was suggested, how often it was tried and achieved, its success rate, its weight and what it was paid.",
        epilog="examples:\n  delphi goals runs/ellm_lockeddoor --sort paid\n"
        "  delphi goals runs/ellm_lockeddoor --json | jq '.[].text'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=path_argument, metavar="RUN", help="a run directory")
    parser.add_argument("--sort", choices=ORDERS, default="number", help="order of the rows (default: number)")
    parser.add_argument("--json", action="store_true", help="print all facts as a JSON list instead of a table")
    arguments = parser.parse_args(argv)
    try:
        goals = sorted(_goals_of(arguments.run), key=ORDERS[arguments.sort])
    except (ValueError, OSError) as error:
        print(f"delphi goals: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(goals))
    else:
        _print(goals)
    return 0


def _goals_of(run: str) -> list[dict[str, Any]]:
    from cluster.goals.facts import goal_facts
    from cluster.run.directory import find_run
    from configs.checks import ConfigError
    from configs.loading import from_dict
    from learner.checkpoint import load_latest

    directory, saved = find_run(run)
    config = from_dict(saved)
    if not config.goals.sources:
        raise ConfigError(f"{run} is a run without goals (goals.sources is empty)")
    state = load_latest(directory.checkpoints)
    if state is None:
        raise ConfigError(f"{run} has no checkpoint yet; the goal book is saved with the first one")
    return goal_facts(config, state)


def _print(goals: Sequence[Mapping[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from cluster.goals.facts import goal_row

    if not goals:
        print("the goal book is still empty")
        return
    rows = [goal_row(goal) for goal in goals]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0]:
        is_text = name in ("Goal", "Source", "Notes")
        width = MIN_WIDTH if name == "Goal" else None
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", min_width=width)
    for row in rows:
        table.add_row(*row.values())
    Console(markup=False, emoji=False).print(table)


if __name__ == "__main__":
    sys.exit(guarded(main))
