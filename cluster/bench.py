"""`delphi bench`: runs a benchmark of the checkout, by name.

Invariant: a benchmark is a module of tests/benchmarks with a `main(argv)`; its docstring's first line is what the list says of it.
"""

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.measurement import CHECKOUT
from configs.suggestions import did_you_mean
from llm_server.standard_output import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: the benchmark's own; 2 where there is none of that name, or no checkout."""
    known = benchmarks()
    arguments = _parser(known).parse_args(argv)
    name = arguments.name
    if not known:
        return _refuse("benchmarks lie in tests/benchmarks of a checkout, which an installed package lacks: run it in a checkout")
    if name not in known:
        return _refuse(f"unknown benchmark '{name}'{did_you_mean(name, known)}; there are: {', '.join(known)}")
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    try:
        return importlib.import_module(f"tests.benchmarks.{name}").main(arguments.options)
    except ValueError as error:
        return _refuse(f"{name}: {error}")


def benchmarks(folder: Path | None = None) -> dict[str, str]:
    """Name and purpose of each benchmark in the checkout, none where there is no checkout; nothing is imported."""
    found = {}
    for path in sorted((folder or CHECKOUT / "tests" / "benchmarks").glob("*.py")):
        module = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").split("\n")[0]
    return found


def _parser(known: dict[str, str]) -> argparse.ArgumentParser:
    lines = [f"  {name:<18}{purpose}" for name, purpose in known.items()] or ["  none: they lie in tests/benchmarks of a checkout"]
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
