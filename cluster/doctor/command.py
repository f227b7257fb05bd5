"""`delphi doctor`: checks this machine and what a configuration needs, and gives advice.

Invariant: changes nothing and always completes: a check that itself fails is one more result.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
    num_failed = sum(result.status == "failed" for result in results)
    num_warnings = sum(result.status == "warning" for result in results)
    seconds = time.monotonic() - started
    if arguments.json:
        print(json.dumps(_report(results, preset or arguments.config, seconds)))
    else:
        word = "all is well" if not num_failed + num_warnings else f"{num_failed} failed, {num_warnings} warnings"
        name = preset or arguments.config
        print(f"{name}, run_dir {config.run_dir}: {len(results)} checks in {seconds:.1f} s, {word}")
    return 1 if num_failed else 0


def examine(config: Any, *, is_quick: bool = False) -> Iterator[CheckResult]:
    """Every result about a `RunConfig`, as it is found; `is_quick` leaves out the judge's labels per second."""
    try:
        from cluster.doctor.label_rate import check_label_rate
        from cluster.doctor.machine import check_disks, check_limits, check_machine, check_torch
        from cluster.doctor.packages import check_packages, check_python
        from cluster.doctor.ray_cluster import check_ports, check_ray
        from cluster.doctor.service import check_environment, check_judge, check_service, check_store
        from cluster.doctor.subject import Subject
    except ImportError as error:
        yield failed("packages", str(error), INSTALL)
        return
    subject = Subject(config)
    checks: list[tuple[str, Callable[[Subject], CheckResult | list[CheckResult]]]] = [
        ("python", check_python),
        ("packages", check_packages),
        ("torch", check_torch),
        ("environment", check_environment),
        ("machine", check_machine),
        ("disks", check_disks),
        ("limits", check_limits),
        ("ray", check_ray),
        ("ports", check_ports),
        ("judge", check_judge),
        ("annotation service", check_service),
        ("judgement store", check_store),
        *([] if is_quick else [("labels", check_label_rate)]),
    ]
    for name, check in checks:
        try:
            found = check(subject)
        except ImportError as error:
            found = failed(name, f"cannot be checked: {error}", "install what `packages` lists first")
        except ValueError as error:  # errors in settings are one line with advice
            found = failed(name, str(error), "correct that setting")
        except Exception as error:  # of any library that this check uses
            reason = named(error, 400)
            found = failed(name, f"the check ended with {reason}", "put that right first: a run would end with it too")
        yield from found if isinstance(found, list) else [found]


def _report(results: Sequence[CheckResult], configuration: str, seconds: float) -> dict[str, Any]:
    keys = ("check", "status", "found", "advice")
    return {
        "ok": not any(result.status == "failed" for result in results),
        "configuration": configuration,
        "seconds": round(seconds, 2),
        "checks": [{key: getattr(result, key) for key in keys} for result in results],
    }


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
