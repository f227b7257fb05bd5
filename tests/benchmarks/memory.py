"""Memory of a whole run over time: resident set by part and Ray's object store, late in the run against early.

Each figure is the median of the samples of one minute. The ratio is of the resident sets of all processes, summed, so
memory that several of them map counts several times; what is in the object store is among the parts.
"""

import argparse
import json
import statistics
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from cluster.run.temporary import ray_directory
from cluster.verbs.bench import divide, print_report, report
from tests.benchmarks.marked_processes import Marked
from tests.benchmarks.whole_run import EVERY_RUN, WORKING_POINT, configuration, role_of

SAMPLE_S = 5.0
MINUTE_S = 60.0
STORE = "object_store"
METRIC = "ray_object_store_used_memory"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(
        prog="delphi bench memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--early", type=float, default=5.0, help="minutes after the first metric line (default: %(default)s)"
    )
    parser.add_argument("--late", type=float, default=20.0, help="the same (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the run, after those of the working point"
    )
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.early <= arguments.late - 1:
        raise ValueError(
            f"--early {arguments.early:g} and --late {arguments.late:g}: wanted 0 <= early <= late - 1 minutes"
        )
    overrides = [*WORKING_POINT, *arguments.overrides]
    configuration(overrides)
    (early, late), lines = _watch(overrides, 60 * arguments.early, 60 * arguments.late)
    result = report(
        "memory",
        measured={"early": [_resident(early)], "late": [_resident(late)]},
        unit="MiB",
        ratio_of=("late", "early"),
        settings={"early_min": arguments.early, "late_min": arguments.late, "overrides": overrides},
        ratios={part: divide(late[part], early[part]) for part in sorted(early)},
        parts={part: {"early": early[part], "late": late[part]} for part in sorted(early)},
        frames=[line["env_steps"] for line in lines],
        captions_distinct=[line["captions_distinct"] for line in lines],
    )
    print_report(result, arguments.json)
    return 0


def _watch(
    overrides: Sequence[str], early_s: float, late_s: float
) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """MiB by part in the minute after `early_s` and in the one after `late_s`, and the metric lines of their ends."""
    samples: dict[float, dict[str, list[float]]] = {early_s: defaultdict(list), late_s: defaultdict(list)}
    lines: dict[float, dict[str, Any]] = {}
    with Marked() as run:
        output = run.folder / "output.txt"
        process = run.start(
            [sys.executable, "-m", "cluster.train", *EVERY_RUN, *overrides, f"run_dir={run.run_dir}"], output
        )
        metrics = run.run_dir / "metrics.jsonl"
        started, said = None, 0.0
        while started is None or time.monotonic() < started + late_s + MINUTE_S:
            time.sleep(SAMPLE_S)
            if process.poll() is not None:
                raise RuntimeError(
                    f"the run ended by itself with exit code {process.returncode}:\n{output.read_text()[-2000:]}"
                )
            if started is None and metrics.exists() and "\n" in metrics.read_text():
                started = time.monotonic()
            now = time.monotonic() - started if started is not None else -1.0
            if now - said > MINUTE_S:
                said = now
                print(f"{now / 60:.0f} of {late_s / 60 + 1:.0f} minutes", file=sys.stderr)
            for since, by_part in samples.items():
                if since <= now < since + MINUTE_S:
                    lines[since] = json.loads(
                        metrics.read_text().rpartition("\n")[0].splitlines()[-1]
                    )  # the last may be half written
                    for part, mebibytes in _memory(run).items():
                        by_part[part].append(mebibytes)
    if STORE not in samples[early_s] or STORE not in samples[late_s]:
        raise RuntimeError("Ray's metrics endpoints did not say what is in the object store")
    medians = [{part: statistics.median(values) for part, values in by_part.items()} for by_part in samples.values()]
    return medians, [lines[since] for since in samples]


def _memory(run: Marked) -> Mapping[str, float]:
    """MiB: resident sets by role, and what is in the object store."""
    found: dict[str, float] = {}
    stores = _object_store_bytes(run)
    if stores:
        found[STORE] = sum(stores) / 2**20
    for process in run.processes():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            role = role_of(process.cmdline())
            found[role] = found.get(role, 0.0) + process.memory_info().rss / 2**20
    return found


def _resident(parts: Mapping[str, float]) -> float:
    return sum(mebibytes for part, mebibytes in parts.items() if part != STORE)


def _object_store_bytes(run: Marked) -> list[float]:
    """Of each node, from Ray's own metrics endpoints; empty while none of them says it."""
    targets = json.loads((ray_directory(str(run.run_dir)) / "prom_metrics_service_discovery.json").read_text())
    used = []
    for target in (address for group in targets for address in group["targets"]):
        with suppress(OSError), urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                used += [sample.value for sample in family.samples if sample.name == METRIC]
    return used


if __name__ == "__main__":
    sys.exit(main())
