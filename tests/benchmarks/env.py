"""NetHack steps/s on one core: lean stepping on shared code pages against NLE's gymnasium API, same games and
observations.

Every window is a fresh process pinned to one core, so that neither mappings nor heaps pass from one way to another; the
ways take turns. All play the same seeded NetHackScore games with the same random actions and write the same
observations (9 x 9 glyphs around the hero, blstats, message) into the same arrays; resets count. Rates are steps per
second of processor time, which on a free core is the time that passes; the rates by elapsed time are in the JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.verbs.bench import CHECKOUT, divide, print_report, report, spread
from tests.benchmarks.game_windows import GYMNASIUM, TASK, WAYS

LEAN, WRAPPED = "lean", "wrapped gymnasium"
PRIMARY_ENVS = 64
WINDOW_S, QUICK_WINDOW_S, WARMUP_S = 180.0, 15.0, 5.0
START_LIMIT_S = 120.0
"""For building the games, beyond the window and the warm-up; a busy machine takes several times their length."""

Measured = dict[tuple[str, int], list[dict[str, float]]]
"""The windows by way and number of environments."""


def run(
    ways: Sequence[str], envs: Sequence[int], *, window_s: float, repetitions: int, seed: int, core: int
) -> Measured:
    """All windows, the ways in turns. RuntimeError, with its last lines, where a window fails."""
    measured: Measured = {(way, num_envs): [] for num_envs in envs for way in ways}
    for repetition in range(repetitions):
        for way, num_envs in measured:
            window = _window(way, num_envs, window_s, seed + repetition, core)
            measured[way, num_envs].append(window)
            print(
                f"repetition {repetition + 1}, {way}, {num_envs}: {window['steps_per_s']:.0f} steps/s",
                file=sys.stderr,
                flush=True,
            )
    return measured


def _window(way: str, num_envs: int, window_s: float, seed: int, core: int) -> dict[str, float]:
    options = {"envs": num_envs, "window": window_s, "warmup": WARMUP_S, "seed": seed, "core": core}
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.game_windows",
        way,
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    limit_s = START_LIMIT_S + 10 * (window_s + WARMUP_S)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=limit_s)
    if done.returncode:
        raise RuntimeError(
            f"{way} with {num_envs} environments ended with exit code {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def summarise(measured: Measured, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The report; its ratio is lean stepping over the gymnasium API with 64 environments, or else with the most."""
    rates = {
        f"{way}, {num_envs}": [window["steps_per_s"] for window in windows]
        for (way, num_envs), windows in measured.items()
    }
    numbers = sorted({num_envs for _, num_envs in measured})
    primary = PRIMARY_ENVS if PRIMARY_ENVS in numbers else numbers[-1]
    baselines = list(dict.fromkeys(way for way, _ in measured if way != LEAN))
    return report(
        "env",
        measured=rates,
        unit="steps/s",
        ratio_of=(f"{LEAN}, {primary}", f"{GYMNASIUM}, {primary}"),
        settings=settings,
        ratios={
            way: {str(n): _ratio(rates[f"{LEAN}, {n}"], rates[f"{way}, {n}"]) for n in numbers} for way in baselines
        },
        windows={f"{way}, {num_envs}": windows for (way, num_envs), windows in measured.items()},
    )


def _ratio(lean: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    singles = [divide(a, b) for a, b in zip(lean, baseline, strict=True)]
    return {"ratio": divide(statistics.median(lean), statistics.median(baseline)), "spread": spread(singles)}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where the command is wrong."""
    parser = argparse.ArgumentParser(prog="delphi bench env", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--envs",
        type=int,
        nargs="+",
        default=[16, 64, 128],
        metavar="N",
        help="environments in the process (default: 16 64 128)",
    )
    parser.add_argument(
        "--window", type=float, metavar="SECONDS", help="processor time of one measurement (default: 180)"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"windows of {QUICK_WINDOW_S:g} s: a first impression, with few resets"
    )
    parser.add_argument(
        "--repetitions", type=int, default=3, metavar="N", help="measurements of each kind (default: 3)"
    )
    parser.add_argument(
        "--all-ways", action="store_true", help="also lean stepping without shared code, and gymnasium's with it"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of games and actions (default: 0)")
    parser.add_argument(
        "--core", type=int, metavar="N", help="the core to use (default: the last one that this process may use)"
    )
    arguments = parser.parse_args(argv)
    window_s = arguments.window if arguments.window is not None else QUICK_WINDOW_S if arguments.quick else WINDOW_S
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    core = allowed[-1] if arguments.core is None else arguments.core
    if core not in allowed:
        parser.error(f"--core: got {core}, wanted one of {', '.join(map(str, allowed))}")
    if min(arguments.envs) < 1:
        parser.error(f"--envs: got {min(arguments.envs)}, wanted at least 1")
    if arguments.repetitions < 1:
        parser.error(f"--repetitions: got {arguments.repetitions}, wanted at least 1")
    if window_s <= 0:
        parser.error(f"--window: got {window_s:g}, wanted more than 0")
    ways = [LEAN, GYMNASIUM, WRAPPED, *(way for way in WAYS if arguments.all_ways and way not in (LEAN, WRAPPED))]
    settings = {
        "task": TASK,
        "envs": arguments.envs,
        "window_s": window_s,
        "warmup_s": WARMUP_S,
        "seed": arguments.seed,
        "core": core,
    }
    envs = sorted(set(arguments.envs))
    measured = run(ways, envs, window_s=window_s, repetitions=arguments.repetitions, seed=arguments.seed, core=core)
    print_report(summarise(measured, settings), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
