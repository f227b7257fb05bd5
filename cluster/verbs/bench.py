"""`delphi bench`: runs a benchmark of the checkout by name; and the report of every benchmark: medians and spread of
repeated measurements, a ratio, and the machine.

Invariant: a benchmark is a module of tests/benchmarks with a `main(argv)`; its docstring's first line is its help. A
result comes with its settings, machine and commit; both sides of a ratio are measured in the same run, in turns.
"""

import argparse
import ast
import importlib
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.run.provenance import CHECKOUT, commit, machine, packages
from configs.errors import did_you_mean
from llm_server.standard_output import guarded

HOME = "tests/benchmarks of a checkout"


def report(
    name: str,
    *,
    measured: Mapping[str, Sequence[float]],
    unit: str,
    ratio_of: tuple[str, str],
    settings: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """A benchmark's result as JSON values.

    `measured` has one value per repetition and measure, in `unit`; the ratio is that of the medians of the two measures
    in `ratio_of`, its spread that of single repetitions.
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
    """a / b; None where b is 0."""
    return a / b if b else None


def spread(values: Sequence[float | None]) -> list[float | None]:
    """The least and the greatest of the values that are not None."""
    there = [value for value in values if value is not None]
    return [min(there, default=None), max(there, default=None)]


def print_report(result: Mapping[str, Any], as_json: bool) -> None:
    """`report`'s result as one JSON object, or as a table."""
    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Column, Table

    title = f"{result['benchmark']}, {result['unit']}, {result['repetitions']} repetitions"
    numbers = [Column(heading, justify="right") for heading in ("median", "spread")]
    table = Table("", *numbers, title=title, title_justify="left")
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
    where = f"{on['processor']}, {on['cores']} cores, load {on['load_average']}"
    console.print(f"{where}; commit {result['commit']}; {result['date']}", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: the benchmark's own; 2 for an unknown name, or without a checkout."""
    known = benchmarks()
    arguments = _parser(known).parse_args(argv)
    name = arguments.name
    if not known:
        return _refuse(f"benchmarks lie in {HOME}, which an installed package lacks: run it in a checkout")
    if name not in known:
        return _refuse(f"unknown benchmark '{name}'{did_you_mean(name, known)}; there are: {', '.join(known)}")
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    try:
        return importlib.import_module(f"tests.benchmarks.{name}").main(arguments.options)
    except ValueError as error:
        return _refuse(f"{name}: {error}")


def benchmarks() -> dict[str, str]:
    """Name and purpose of each benchmark in the checkout, empty without one; nothing is imported."""
    found = {}
    for path in sorted((CHECKOUT / "tests" / "benchmarks").glob("*.py")):
        module = ast.parse(path.read_bytes())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").split("\n")[0]
    return found


def _parser(known: dict[str, str]) -> argparse.ArgumentParser:
    lines = [f"  {name:<18}{purpose}" for name, purpose in known.items()] or [f"  none: they lie in {HOME}"]
    parser = argparse.ArgumentParser(
        prog="delphi bench",
        usage="delphi bench NAME [--json] [options]",
        description="Measure against a baseline in the same run.",
        epilog="benchmarks:\n" + "\n".join(lines) + "\n\n`delphi bench NAME --help` lists a benchmark's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a benchmark of the list below")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the benchmark's own")
    return parser


def _refuse(message: str) -> int:
    print(f"delphi bench: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(guarded(main))
