"""Which reward models solve a sparse MiniHack task: every arm, several seeds, equal environment steps, one table and one plot.

Each run is `delphi train --preset minihack_lockeddoor` in `inline` mode, so it is deterministic and counts in environment steps: how busy
the machine is does not matter. Runs that are done are skipped, runs that were stopped continue, so the same command finishes the rest.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster.measurement import CHECKOUT, commit, machine, packages
from configs.loading import load_config
from tests.benchmarks.minihack_control import judged_captions
from tests.benchmarks.minihack_control import overrides as permuted_answers
from tests.benchmarks.minihack_figures import collect, draw, markdown, summarise

PRESET = "minihack_lockeddoor"
GOALS = ["You kick the door open.", "You reach the stairs down."]
"""What the preset's first line says of the task: the embedding model gets its goals from a person, not from a language model."""
ARMS: dict[str, tuple[str, ...]] = {
    "none": ("reward_model.name=none",),
    "counts": ("reward_model.name=counts",),
    "retrieval": ("reward_model.name=retrieval",),
    "permuted": ("reward_model.name=retrieval",),  # and the judge's answers permuted, see minihack_control.py
    "embedding": ("reward_model.name=embedding", f"reward_model.goals={json.dumps(GOALS)}"),
    "classification": ("reward_model.name=classification",),
    "ranking": ("reward_model.name=ranking",),
}
"""Everything in which the arms differ."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 some run failed, 2 the command was wrong."""
    parser = argparse.ArgumentParser(
        prog="delphi bench minihack_rewards", description="Train every arm on a sparse MiniHack task and compare what was learnt."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where runs, results.json, table.md and minihack.png go")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="N", help="seeds (default 1 2 3 4 5)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time, one thread each (default 2)")
    parser.add_argument("--episodes", type=int, default=200, metavar="N", help="held-out episodes per run (default 200)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every arm")
    parser.add_argument("--json", action="store_true", help="print results.json instead of the table")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1 or arguments.episodes < 1:
        raise ValueError(f"--jobs and --episodes are at least 1, got {arguments.jobs} and {arguments.episodes}")
    judged = judged_captions(arguments.out / "captions.json", load_config(preset=PRESET, overrides=arguments.set))
    # Seeds outermost: what is there when somebody stops it is a fair comparison of fewer seeds.
    runs = [(arm, seed) for seed in arguments.seeds for arm in arguments.arms]
    progress = Progress(len(runs))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(pool.map(lambda run: progress.watch(run, lambda: _train_and_evaluate(*run, arguments, judged)), runs))
    results = {
        "benchmark": "minihack_rewards",
        "preset": PRESET,
        "overrides": arguments.set,
        "commit": commit(),
        "machine": machine(),
        "packages": packages(),
        "judged": judged,
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
        self._say(f"{run[0]} seed {run[1]}: {error or 'done'}; {self._done} of {self._num_runs}, about {left_s / 60:.0f} min left")
        return error is None

    def _say(self, text: str) -> None:
        with self._lock:
            print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _train_and_evaluate(arm: str, seed: int, arguments: argparse.Namespace, judged: dict[str, Any]) -> str | None:
    """What went wrong, None if nothing; a run that is done already is left as it is."""
    run = arguments.out / "runs" / f"{arm}-{seed}"
    evaluation = run / "evaluation.json"
    if evaluation.exists():
        return None
    overrides = ["cluster.mode=inline", "learner.torch_threads=1", "logging.console=quiet", "logging.tensorboard=false"]
    overrides += ["checkpoint.interval_env_steps=0", f"run_dir={run}", f"seed={seed}", *ARMS[arm], *arguments.set]
    overrides += permuted_answers(judged, seed) if arm == "permuted" else []
    trained = _run(["-m", "cluster.train", "--preset", PRESET, *overrides])
    if trained.returncode:
        return f"training failed: {_last_line(trained.stderr)}"
    if not json.loads((run / "summary.json").read_text())["finished"]:
        return "was stopped before its end"
    played = _run(["-m", "cluster.evaluate", str(run), "--episodes", str(arguments.episodes), "--envs", "20", "--json"])
    if played.returncode:
        return f"evaluation failed: {_last_line(played.stderr)}"
    evaluation.write_text(played.stdout)
    return None


def _run(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    sys.exit(main())
