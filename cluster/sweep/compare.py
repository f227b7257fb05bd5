"""`delphi compare`: compares the arms of a sweep by the runs that are done, as tables, pictures and JSON.

Invariant: reads run directories only; the same runs give the same files.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.checks import ConfigError
from configs.paths import path_argument
from llm_server.standard_output import guarded

if TYPE_CHECKING:  # --help must not load torch
    from cluster.sweep.sweep_file import PlannedRun, Sweep

SWEEP_FILE = "sweep.yaml"
"""The copy of the sweep file in a sweep's folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 an invalid command, or no run is done."""
    parser = argparse.ArgumentParser(
        prog="delphi compare",
        description="Compare the arms of a sweep by the runs that are done: results.md, results.json and, with"
        " matplotlib, curves.png and profile.png. `delphi sweep` does so at its end.",
    )
    parser.add_argument("sweep", type=path_argument, metavar="DIR", help="the folder that `delphi sweep` wrote")
    parser.add_argument("--out", type=path_argument, metavar="DIR", help="folder of the results (default: the sweep's)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object instead of tables")
    arguments = parser.parse_args(argv)
    from cluster.sweep.sweep_file import read_sweep

    folder = Path(arguments.sweep).absolute()
    out = Path(arguments.out or folder)
    try:
        if not (folder / SWEEP_FILE).exists():
            raise ConfigError(f"{folder} has no {SWEEP_FILE}; give the folder that `delphi sweep` wrote (its --out)")
        sweep = read_sweep(folder / SWEEP_FILE)
        if not write_comparison(sweep, list(sweep.runs(folder)), out):
            raise ConfigError(f"no run in {folder} is done yet; `delphi sweep` with the same --out continues them")
        print((out / ("results.json" if arguments.json else "results.md")).read_text(), end="")
    except (ConfigError, OSError) as error:
        print(f"delphi compare: {error}", file=sys.stderr)
        return 2
    return 0


def write_comparison(sweep: "Sweep", runs: "Sequence[PlannedRun]", out: Path) -> int:
    """Write results.json, results.md and the pictures into `out`; the number of runs that are done, without which
    nothing is written. Where there is no matplotlib, one line on standard error says so."""
    from cluster.run.directory import write_atomically
    from cluster.run.provenance import packages
    from cluster.sweep.comparison import compare
    from cluster.sweep.plots import draw
    from cluster.sweep.results import collect
    from cluster.sweep.tables import markdown

    done = collect(runs, sweep)
    if not done:
        return 0
    results = {
        "title": sweep.title,
        "metric": sweep.metric,
        "solved": sweep.solved,
        "episodes": sweep.episodes,
        "gain": list(sweep.gain),
        "processors": sorted({run["processor"] for run in done}),
        "packages": packages(),
        "commits": sorted({run["commit"] for run in done if run["commit"]}),
        **compare(sweep, done),
        "runs": done,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "results.json", json.dumps(results) + "\n")
    write_atomically(out / "results.md", markdown(results))
    try:
        draw(results, out)
    except ConfigError as error:
        print(error, file=sys.stderr)
    return len(done)


if __name__ == "__main__":
    sys.exit(guarded(main))
