"""What every benchmark reports: medians and spread of repeated measurements, a ratio, and what they were taken on.

Invariant: a figure comes with its settings, machine and commit; both sides of a ratio are measured in the same run, in turns.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parent.parent
PACKAGES = ("torch", "transformers", "ray", "nle", "gymnasium", "numpy")


def report(
    name: str, *, measured: Mapping[str, Sequence[float]], unit: str, ratio_of: tuple[str, str], settings: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """A benchmark's result as JSON values.

    `measured` has one value per repetition and measure, in `unit`; the ratio is that of the medians of the two measures that
    `ratio_of` names, its spread that of the single repetitions.
    """
    numerator, denominator = ratio_of
    medians = {measure: statistics.median(values) for measure, values in measured.items()}
    ratios = [divide(a, b) for a, b in zip(measured[numerator], measured[denominator], strict=True)]
    return {
        "benchmark": name,
        "ratio": divide(medians[numerator], medians[denominator]),
        "ratio_of": list(ratio_of),
        "ratio_spread": spread(ratios),
        "unit": unit,
        "medians": medians,
        "spread": {measure: spread(values) for measure, values in measured.items()},
        "repetitions": max(map(len, measured.values())),
        "settings": dict(settings),
        **more,
        "machine": machine(),
        "commit": commit(),
        "packages": packages(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def divide(a: float, b: float) -> float | None:
    """a / b, None where there is none."""
    return a / b if b else None


def spread(values: Sequence[float | None]) -> list[float | None]:
    """The least and the greatest of the values that there are."""
    there = [value for value in values if value is not None]
    return [min(there), max(there)] if there else [None, None]


def machine() -> dict[str, Any]:
    """The processor, how many cores this process may use, memory, and how busy the machine has been for a minute."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": model, "cores": cores, "memory_gib": round(memory, 1), "load_average": round(os.getloadavg()[0], 2)}


def commit() -> str | None:
    """The checkout's commit, marked `-dirty` where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def packages() -> dict[str, str]:
    """Versions of the packages that decide speed, of those that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def print_report(result: Mapping[str, Any], as_json: bool) -> None:
    """`report`'s result as one JSON object, or as a table."""
    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['benchmark']}, {result['unit']}, {result['repetitions']} repetitions", title_justify="left")
    for heading in ("", "median", "spread"):
        table.add_column(heading, justify="right" if heading else "left")
    for measure, median in result["medians"].items():
        low, high = result["spread"][measure]
        table.add_row(measure, f"{median:.3g}", f"{low:.3g} to {high:.3g}")
    low, high = result["ratio_spread"]
    numerator, denominator = result["ratio_of"]
    if result["ratio"] is not None:
        table.add_row(f"ratio of {numerator} to {denominator}", f"{result['ratio']:.3g}", f"{low:.3g} to {high:.3g}")
    console = Console(soft_wrap=True, markup=False, emoji=False)
    console.print(table)
    on = result["machine"]
    console.print(
        f"{on['processor']}, {on['cores']} cores, load {on['load_average']}; commit {result['commit']}; {result['date']}", highlight=False
    )
