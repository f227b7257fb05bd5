"""Which rewards solve a sparse MiniHack task: every arm, several seeds, equal environment steps, one table and one
plot.

Each run is `delphi train --preset minihack_lockeddoor` in `inline` mode, so it is deterministic and counts in
environment steps: how busy the machine is does not matter. A judge labels captions once, before all runs; these only
look its labels up. Runs that are done are skipped, runs that were stopped continue, so the same command finishes the
rest.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from cluster.verbs.bench import commit, machine, packages
from configs.loading import load_config
from configs.schema import RunConfig
from tests.benchmarks.minihack_control import (
    BAND,
    ROUNDING,
    above,
    judge,
    judged_captions,
    paying,
    payment,
    permuted,
    rarest,
)
from tests.benchmarks.minihack_figures import captions_shown, collect, draw, markdown, summarise

PRESET = "minihack_lockeddoor"
ENV_STEPS = 40_000
"""Steps of each run: about half of what the learner needs where nothing but the goal pays, found by a pilot on seeds
101 and 102."""
KEYWORD = "crashes open"
"""What a person who knows the task would look for in its messages."""


def _permuted(turn: int, judged: Mapping[str, Any]) -> list[str]:
    return payment(permuted(judged, above(judged, ROUNDING), turn))


ARMS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "none": lambda judged: ["reward_model.name=none"],
    "counts": lambda judged: ["reward_model.name=counts"],
    "retrieval": lambda judged: payment(above(judged, ROUNDING)),
    "retrieval_borderline": lambda judged: payment(above(judged, -ROUNDING)),
    "keyword": lambda judged: paying([KEYWORD]),
    "rarest": lambda judged: payment(rarest(judged)),
    **{f"permuted_{turn}": partial(_permuted, turn) for turn in range(1, BAND)},
}
"""Everything in which the arms differ, a function of what the judge said. The two label sets are the captions that it
puts above theta whatever the rounding, and those that some rounding puts above it."""
PRELOADED = [
    "actors.environments.nethack.vector",
    "cluster.verbs.evaluate",
    "cluster.inline",
    "cluster.train",
    "learner.evaluation",
    "learner.update",
]
"""What a run imports for seconds: once in the process that runs are forked from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 some run failed, 2 the command was wrong."""
    parser = argparse.ArgumentParser(
        prog="delphi bench minihack_rewards",
        description="Train every arm on a sparse MiniHack task and compare what was learnt.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where runs, results.json, table.md and minihack.png go"
    )
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=list(range(1, 11)), metavar="N", help="seeds (default 1 to 10)"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time, one thread each (default 2)")
    parser.add_argument(
        "--episodes", type=int, default=200, metavar="N", help="held-out episodes per run and player (default 200)"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every arm")
    parser.add_argument("--json", action="store_true", help="print results.json instead of the table")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1 or arguments.episodes < 1:
        raise ValueError(f"--jobs and --episodes are at least 1, got {arguments.jobs} and {arguments.episodes}")
    config = load_config(preset=PRESET, overrides=arguments.set)
    judged = judged_captions(arguments.out / "captions.json", config)
    # Seeds outermost: what is there when somebody stops it is a fair comparison of fewer seeds.
    runs = [(arm, seed) for seed in arguments.seeds for arm in arguments.arms]
    progress, context = Progress(len(runs)), _context()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(
            pool.map(
                lambda run: progress.watch(run, lambda: _train_and_evaluate(*run, arguments, judged, context)), runs
            )
        )
    results = {
        "benchmark": "minihack_rewards",
        "preset": PRESET,
        "overrides": arguments.set,
        "commit": commit(),
        "machine": machine(),
        "packages": packages(),
        "env_steps": ENV_STEPS,
        "judged": judged,
        "judged_later": _judged_later(arguments.out, judged, config),
        "paid": {arm: _paid(settings(judged)) for arm, settings in ARMS.items()},
        **summarise(collect(arguments.out, list(ARMS))),
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "table.md").write_text(markdown(results))
    draw(results, arguments.out / "minihack.png")
    print(json.dumps(results) if arguments.json else markdown(results))
    return 0 if all(done) else 1


class Progress:
    """Says on standard error what runs and how long the rest will take."""

    def __init__(self, num_runs: int) -> None:
        self._num_runs, self._done, self._started, self._lock = num_runs, 0, time.monotonic(), threading.Lock()

    def watch(self, run: tuple[str, int], work: Any) -> bool:
        """Whether `work` succeeded."""
        self._say(f"{run[0]} seed {run[1]}: starts")
        error = work()
        with self._lock:
            self._done += 1
            left_s = (time.monotonic() - self._started) / self._done * (self._num_runs - self._done)
        self._say(
            f"{run[0]} seed {run[1]}: {error or 'done'}; {self._done} of {self._num_runs}, about"
            f" {left_s / 60:.0f} min left"
        )
        return error is None

    def _say(self, text: str) -> None:
        with self._lock:
            print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _train_and_evaluate(
    arm: str, seed: int, arguments: argparse.Namespace, judged: Mapping[str, Any], context: ForkServerContext
) -> str | None:
    """What went wrong, None if nothing; a run that is done already is left as it is."""
    run = arguments.out / "runs" / f"{arm}-{seed}"
    evaluation = run / "evaluation.json"
    if evaluation.exists():
        return None
    overrides = ["cluster.mode=inline", "learner.torch_threads=1", "logging.console=quiet", "logging.tensorboard=false"]
    overrides += ["checkpoint.interval_env_steps=0", "logging.interval_env_steps=2000", f"total_env_steps={ENV_STEPS}"]
    overrides += [f"run_dir={run}", f"seed={seed}", *ARMS[arm](judged), *arguments.set]
    output = arguments.out / "output" / f"{arm}-{seed}"
    output.parent.mkdir(parents=True, exist_ok=True)
    if _run(context, "cluster.train", ["--preset", PRESET, *overrides], output):
        return f"training failed: {_last_line(output.with_suffix('.err').read_text())}"
    if not json.loads((run / "summary.json").read_text())["finished"]:
        return "was stopped before its end"
    if _run(
        context,
        "cluster.verbs.evaluate",
        [str(run), "--episodes", str(arguments.episodes), "--envs", "20", "--json"],
        output,
    ):
        return f"evaluation failed: {_last_line(output.with_suffix('.err').read_text())}"
    output.with_suffix(".out").replace(evaluation)
    return None


def _context() -> ForkServerContext:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the server that runs are forked from starts
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _run(context: ForkServerContext, module: str, arguments: list[str], output: Path) -> int:
    """Exit code of a module's `main` in a process of its own, whose output goes to files beside each other."""
    process = context.Process(target=_call, args=(module, arguments, output))
    process.start()
    process.join()
    return process.exitcode or 0


def _call(module: str, arguments: list[str], output: Path) -> None:
    with (
        output.with_suffix(".out").open("w") as out,
        output.with_suffix(".err").open("w") as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = importlib.import_module(module).main(arguments)
    sys.exit(code)


def _judged_later(out: Path, judged: Mapping[str, Any], config: RunConfig) -> list[list[Any]]:
    """Captions that only the runs showed, which therefore had no label: text, count in all runs, and what the judge
    says of them."""
    known = {text for text, _, _ in judged["captions"]}
    shown = {text: count for text, count in captions_shown(out).items() if text and text not in known}
    texts = sorted(shown, key=lambda text: (-shown[text], text))
    probabilities = judge(texts, config)[0] if texts else []
    return [[text, shown[text], probability] for text, probability in zip(texts, probabilities, strict=True)]


def _paid(overrides: Sequence[str]) -> str:
    """The script of an arm, empty where it has none."""
    return next((setting.partition("=")[2] for setting in overrides if setting.startswith("service.script=")), "")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    sys.exit(main())
