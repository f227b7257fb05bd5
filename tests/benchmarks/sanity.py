"""Whether the learner learns known tasks at the pace of Stable-Baselines3's PPO, and a memory task with its cores.

Each arm of a task plays the same environment for the same number of steps. A finished run is one line of results.jsonl,
and is not repeated unless its settings have changed, so the same command finishes what is left. Runs go one after
another, on one thread.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.verbs.bench import CHECKOUT, commit, machine, packages
from configs.loading import load_config
from tests.benchmarks import sanity_ours
from tests.benchmarks.sanity_figures import WANTED_RATIO, markdown, summarise
from tests.benchmarks.sanity_tasks import COMMON, TASKS

ARMS = ("reference", "ours", "random")
BEGIN, END = "<!-- tables of `delphi bench sanity --report` -->", "<!-- end of tables -->"
DOCUMENT = CHECKOUT / "docs" / "results" / "sanity.md"
REFERENCE_PACKAGES = "torch stable-baselines3 gymnasium"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 some run failed, 2 the command was wrong."""
    parser = argparse.ArgumentParser(prog="delphi bench sanity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where results.jsonl and unfinished runs lie"
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)}"
    )
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="N", help="seeds (default 1 2 3 4 5)"
    )
    parser.add_argument(
        "--reference-python",
        metavar="PYTHON",
        help=f"a Python with {REFERENCE_PACKAGES} and what the tasks' environments need",
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for our arm, over the task's"
    )
    parser.add_argument(
        "--report", action="store_true", help=f"run nothing: write the tables of {DOCUMENT.relative_to(CHECKOUT)}"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args(argv)
    results = Results(arguments.out / "results.jsonl")
    wanted = [
        (task, arm, seed)
        for task in arguments.tasks
        for seed in arguments.seeds
        for arm in arguments.arms
        if arm != "reference" or TASKS[task].reference
    ]
    missing = [run for run in wanted if not results.has(*run, digest(*run[:2], arguments.set))]
    if any(arm == "reference" for _, arm, _ in missing) and not arguments.report and not arguments.reference_python:
        raise ValueError(
            f"--reference-python is needed for the reference arm: a Python with {REFERENCE_PACKAGES} installed,"
            " for example a virtual"
            " environment of its own; --arms ours random leaves the reference out"
        )
    failed = 0
    if not arguments.report:
        for task, arm, seed in missing:
            failed += not _run(task, arm, seed, arguments, results)
    tasks = summarise([run for run in results.lines if run["digest"] == digest(run["task"], run["arm"], arguments.set)])
    if arguments.report:
        write_tables(DOCUMENT, markdown(tasks))
    report = {"benchmark": "sanity", "tasks": tasks, "commit": commit(), "machine": machine(), "packages": packages()}
    print(json.dumps(report) if arguments.json else markdown(tasks))
    if not arguments.json:
        for name, figures in tasks.items():
            if "final_ratio" in figures and figures["final_ratio"]["mean"] < WANTED_RATIO:
                print(f"{name}: below {WANTED_RATIO} of the reference's final return", file=sys.stderr)
    return 1 if failed else 0


class Results:
    """The finished runs, one JSON object a line; a line that a killed process left unfinished is passed over."""

    def __init__(self, file: Path) -> None:
        self._file, self.lines = file, []
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                self.lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue

    def has(self, task: str, arm: str, seed: int, settings: str) -> bool:
        """Whether this run is there, under the same settings."""
        return any(
            (run["task"], run["arm"], run["seed"], run["digest"]) == (task, arm, seed, settings) for run in self.lines
        )

    def add(self, run: Mapping[str, Any]) -> None:
        """Append a run to the file."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        broken = self._file.exists() and not self._file.read_bytes().endswith(b"\n")
        with self._file.open("a") as file:
            file.write(("\n" if broken else "") + json.dumps(run) + "\n")
        self.lines.append(run)


def digest(task: str, arm: str, more: Sequence[str] = ()) -> str:
    """Of everything that decides an arm's result, but the seed and the code."""
    described = {
        key: value for key, value in asdict(TASKS[task]).items() if key not in ("source", "requires", "solved")
    }
    described.pop("reference" if arm != "reference" else "overrides")
    if arm == "random":
        described.pop("overrides")
    if arm == "ours":
        described["more"] = [*COMMON, *more]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def write_tables(document: Path, tables: str) -> None:
    """Put `tables` between the document's two marks; ValueError where it has none."""
    head, begin, rest = document.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} lacks the lines {BEGIN!r} and {END!r}, between which the tables go")
    document.write_text(f"{head}{BEGIN}\n\n{tables}\n{END}{tail}")


def _run(task: str, arm: str, seed: int, arguments: argparse.Namespace, results: Results) -> bool:
    """Whether the run succeeded; its line is added."""
    print(f"[{time.strftime('%H:%M:%S')}] {task}, {arm}, seed {seed}", file=sys.stderr, flush=True)
    try:
        if arm == "reference":
            figures = _reference(arguments.reference_python, task, seed)
        elif arm == "ours":
            folder = arguments.out / "runs" / f"{task}-{seed}"
            figures = sanity_ours.train_and_evaluate(TASKS[task], seed, folder.absolute(), arguments.set)
        else:
            config = load_config(overrides=sanity_ours.settings(TASKS[task], seed, ()))
            figures = sanity_ours.evaluate(config, TASKS[task], seed, None)
    except (RuntimeError, ValueError, OSError) as error:
        needs = " ".join(TASKS[task].requires)
        print(
            f"{task}, {arm}, seed {seed}: {error}" + (f" (the task needs {needs})" if needs else ""),
            file=sys.stderr,
            flush=True,
        )
        return False
    results.add(
        {
            "task": task,
            "arm": arm,
            "seed": seed,
            "digest": digest(task, arm, arguments.set),
            **figures,
            "commit": commit(),
        }
    )
    return True


def _reference(python: str, task: str, seed: int) -> dict[str, Any]:
    """The reference's figures; RuntimeError with its last line on standard error where it fails."""
    done = subprocess.run(
        [python, "-m", "tests.benchmarks.sanity_reference", "--task", task, "--seed", str(seed)],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode} without a word"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
