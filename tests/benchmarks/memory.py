"""Memory of a whole run over time: by part and in Ray's object store, late in the run against early.

Each figure is the median of the samples of one minute. The ratio is of the proportional set sizes (PSS) of all
processes, summed: a page that n processes map counts 1/n in each of them, so the pages of the object store, which every
worker, the learner and the annotator map, count once. Resident sets (RSS), in which they count n times, are reported
beside.
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
from itertools import pairwise
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
PSS, RSS = " PSS", " RSS"
METRIC = "ray_object_store_used_memory"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(
        prog="delphi bench memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes",
        type=float,
        nargs="+",
        default=[5.0, 20.0],
        metavar="M",
        help="after the first metric line, in rising order; an hour: 5 20 60 (default: 5 20)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the run, after those of the working point"
    )
    arguments = parser.parse_args(argv)
    minutes = arguments.minutes
    if len(minutes) < 2 or minutes[0] < 0 or any(later < earlier + 1 for earlier, later in pairwise(minutes)):
        raise ValueError(
            f"--minutes {' '.join(f'{minute:g}' for minute in minutes)}: wanted two or more, each at least 1 after the"
            " one before"
        )
    overrides = [*WORKING_POINT, *arguments.overrides]
    configuration(overrides)
    found, lines = _watch(overrides, [60 * minute for minute in minutes])
    names = [f"minute {minute:g}" for minute in minutes]
    parts = sorted(set.intersection(*(set(each) for each in found)))
    result = report(
        "memory",
        measured={name: [_total(each, PSS)] for name, each in zip(names, found, strict=True)},
        unit="MiB",
        ratio_of=(names[-1], names[0]),
        settings={"minutes": minutes, "overrides": overrides},
        growth={
            name: divide(_total(each, PSS), _total(found[0], PSS)) for name, each in zip(names, found, strict=True)
        },
        resident={name: _total(each, RSS) for name, each in zip(names, found, strict=True)},
        parts={part: {name: each[part] for name, each in zip(names, found, strict=True)} for part in parts},
        frames=[line["env_steps"] for line in lines],
        captions_distinct=[line["captions_distinct"] for line in lines],
    )
    print_report(result, arguments.json)
    return 0


def _watch(overrides: Sequence[str], times_s: Sequence[float]) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """MiB by part in the minute after each of `times_s`, and the metric lines of their ends."""
    samples: dict[float, dict[str, list[float]]] = {time_s: defaultdict(list) for time_s in times_s}
    last_s = times_s[-1]
    lines: dict[float, dict[str, Any]] = {}
    with Marked() as run:
        output = run.folder / "output.txt"
        process = run.start(
            [sys.executable, "-m", "cluster.train", *EVERY_RUN, *overrides, f"run_dir={run.run_dir}"], output
        )
        metrics = run.run_dir / "metrics.jsonl"
        started, said = None, 0.0
        while started is None or time.monotonic() < started + last_s + MINUTE_S:
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
                print(f"{now / 60:.0f} of {last_s / 60 + 1:.0f} minutes", file=sys.stderr)
            for since, by_part in samples.items():
                if since <= now < since + MINUTE_S:
                    lines[since] = json.loads(
                        metrics.read_text().rpartition("\n")[0].splitlines()[-1]
                    )  # the last may be half written
                    for part, mebibytes in _memory(run).items():
                        by_part[part].append(mebibytes)
    if any(STORE not in by_part for by_part in samples.values()):
        raise RuntimeError("Ray's metrics endpoints did not say what is in the object store")
    medians = [{part: statistics.median(values) for part, values in by_part.items()} for by_part in samples.values()]
    return medians, [lines[since] for since in samples]


def _memory(run: Marked) -> Mapping[str, float]:
    """MiB: PSS and RSS by role, and what is in the object store."""
    stores = _object_store_bytes(run)
    in_stores = {STORE: sum(stores) / 2**20} if stores else {}
    return in_stores | memory_of(run.processes())


def memory_of(processes: Sequence[psutil.Process]) -> dict[str, float]:
    """MiB: `<role> PSS` and `<role> RSS`, summed over the processes of a role."""
    found: dict[str, float] = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            role, memory = role_of(process.cmdline()), process.memory_full_info()
            for name, size in ((f"{role}{PSS}", memory.pss), (f"{role}{RSS}", memory.rss)):
                found[name] = found.get(name, 0.0) + size / 2**20
    return found


def _total(parts: Mapping[str, float], kind: str) -> float:
    return sum(mebibytes for part, mebibytes in parts.items() if part.endswith(kind))


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
