"""`delphi doctor`: checks this machine and what a configuration needs, and gives advice.

Invariant: changes nothing and always completes: a check that itself fails is one more result.
"""

import argparse
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from cluster.doctor.result import CheckResult, failed
from configs.errors import named
from configs.flags import add_configuration
from llm_server.standard_output import guarded

DEFAULT_PRESET = "nethack_score"
INSTALL = "run `make setup` in a checkout, or `pip install 'delphi-rl[nle,minihack,local-llm]'`, and ask again"
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 nothing failed, 1 something did, 2 invalid command."""
    arguments = _parser().parse_intermixed_args(argv)
    started = time.monotonic()
    try:
        from configs.checks import ConfigError
        from configs.loading import load_config
    except ImportError as error:
        print(f"delphi doctor: packages are missing ({error}): {INSTALL}", file=sys.stderr)
        return 1
    preset = arguments.preset or (None if arguments.config else DEFAULT_PRESET)
    try:
        config = load_config(preset=preset, file=arguments.config, overrides=arguments.overrides)
    except ConfigError as error:
        print(f"delphi doctor: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("llm_server").setLevel(logging.INFO)  # it logs when it unpacks a model, which takes a while
    results = []
    for result in examine(config, is_quick=arguments.quick):
        results.append(result)
        if not arguments.json:
            _print(result)
    counts = Counter(result.status for result in results)
    seconds, name = time.monotonic() - started, preset or arguments.config
    if arguments.json:
        report = {"ok": not counts["failed"], "configuration": name, "seconds": round(seconds, 2)}
        print(json.dumps(report | {"checks": [asdict(result) for result in results]}))
    else:
        problems = f"{counts['failed']} failed, {counts['warning']} warnings"
        word = "all is well" if counts["ok"] == len(results) else problems
        print(f"{name}, run_dir {config.run_dir}: {len(results)} checks in {seconds:.1f} s, {word}")
    return 1 if counts["failed"] else 0


def examine(config: Any, *, is_quick: bool = False) -> Iterator[CheckResult]:
    """Every result about a `RunConfig`, as it is found; `is_quick` leaves out the judge's labels per second."""
    try:
        import cluster.doctor.environment as environment
        import cluster.doctor.label_rate as label_rate
        import cluster.doctor.machine as machine
        import cluster.doctor.packages as packages
        import cluster.doctor.ray_cluster as ray_cluster
        import cluster.doctor.service as service
        from cluster.doctor.subject import Subject
    except ImportError as error:
        yield failed(str(error), INSTALL, check="packages")
        return
    mode = config.cluster.mode
    # A check's name in the report, whether it applies, and its function. One that does not apply has no line; one that
    # applies, and finds that the run needs nothing of it, says so in its line.
    checks: tuple[tuple[str, bool, Callable[[Subject], CheckResult | list[CheckResult]]], ...] = (
        ("python", True, packages.check_python),
        ("packages", True, packages.check_packages),
        ("torch", True, machine.check_torch),
        ("environment", True, environment.check_environment),
        ("machine", True, machine.check_machine),
        ("run directory", True, machine.check_run_dir),
        ("temporary files", True, machine.check_temporary),
        ("object store", mode == "local", machine.check_object_store),
        ("limits", True, machine.check_limits),
        ("ray token", mode != "inline", ray_cluster.check_token),
        ("ray", True, ray_cluster.check_ray),
        ("ports", True, ray_cluster.check_ports),
        ("judge", True, service.check_judge),
        ("annotation service", True, service.check_service),
        ("judgement store", True, service.check_store),
        ("labels", not is_quick, label_rate.check_label_rate),
    )
    subject = Subject(config)
    first: dict[str, str] = {}  # error in a setting -> the check that named it
    for name, applies, check in checks:
        try:
            found = check(subject) if applies else []
        except ImportError as error:
            found = failed(f"cannot be checked: {error}", "install what `packages` lists first")
        except ValueError as error:  # errors in settings are one line with advice
            told = first.setdefault(str(error), name)
            reason = str(error) if told == name else f"cannot be checked, for the reason at `{told}`"
            found = failed(reason, "correct that setting")
        except Exception as error:  # of any library that this check uses
            reason = named(error, 400)
            found = failed(f"the check ended with {reason}", "put that right first: a run would end with it too")
        for result in found if isinstance(found, list) else [found]:
            yield replace(result, check=result.check or name)


def _print(result: CheckResult) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(f"{result.status:<9}", STYLES[result.status]), Text(f"{result.check:<20}{result.found}"), sep="")
    if result.advice:
        console.print(Text(f"{'':29}-> {result.advice}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi doctor",
        description="Check this machine and what a configuration needs of it, and say what to do. Takes the arguments"
        " of `delphi train`.",
        epilog="examples:\n"
        "  delphi doctor\n"
        "  delphi doctor --preset nethack_score annotator.address=127.0.0.1:7431\n"
        "  delphi doctor --json cluster.mode=connect run_dir=/shared/runs/first",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_configuration(parser, f"a built-in configuration (default {DEFAULT_PRESET})")
    quick = "do not load the judge's model to measure its labels per second"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
