"""Frames/s of a whole run as a user starts it, against a peer, another reward model, or the same run with its service
hung or dead.

Sides take turns, in reversed order every other time. Delphi's figure is that of a window after its warm-up (see
whole_run.py), NetHackScore with the reference network. A peer is a script that trains the same and prints JSON with
`env_steps_per_s`, its own average over the last minute; it is given the warm-up on top of at least that minute.
"""

import argparse
import json
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.verbs.bench import divide, print_report, report, spread
from tests.benchmarks.marked_processes import Marked
from tests.benchmarks.peer_environment import peer_python
from tests.benchmarks.whole_run import EVERY_RUN, WORKING_POINT, Window, configuration, measure, service_of

PEER_AVERAGE_S = 60.0
"""What a peer's figure covers."""
PEER_MARGIN_S = 120.0
"""For a peer's start and end."""
FAULTS = {"hang": signal.SIGSTOP, "kill": signal.SIGKILL}
REUSE_OFF = "policy.reuse_crops=false"
Side = Callable[[], "float | Window"]


class Fault:
    """Strikes the run's annotation service, and each that comes after it."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number
        self._struck: psutil.Process | None = None

    def __call__(self, run: Marked) -> None:
        """To be called again and again: looks for a service only where the last one struck is gone."""
        if self._struck is None or not self._struck.is_running() or self._struck.status() == psutil.STATUS_ZOMBIE:
            service = service_of(run)
            if service is not None:
                with suppress(psutil.NoSuchProcess):
                    service.send_signal(self._number)
                    self._struck = service

    def check(self) -> None:
        """RuntimeError where there was no service to strike."""
        if self._struck is None:
            raise RuntimeError(
                "the run had no annotation service in its window, so nothing was measured; is reward_model.name set?"
            )


def sides(arguments: argparse.Namespace, peer_settings: dict[str, Any]) -> dict[str, Side]:
    """What is compared: the measure's name to what takes it once; numerator and denominator of the ratio first."""

    def delphi(*overrides: str, fault: Fault | None = None) -> Side:
        settings = [*WORKING_POINT, *arguments.overrides, *overrides]
        configuration(settings)  # a wrong key shows at once

        def run() -> Window:
            window = measure(
                settings, seconds=arguments.seconds, warmup_s=arguments.warmup, in_window=fault or (lambda run: None)
            )
            if fault is not None:
                fault.check()
            return window

        return run

    if arguments.against:
        python = arguments.against_python or peer_python(arguments.against)
        command = [str(python), str(arguments.against.resolve()), *shlex.split(arguments.against_options)]
        command += ["--seconds", str(round(arguments.warmup + max(arguments.seconds, PEER_AVERAGE_S)))]
        return {
            "Delphi": delphi(),
            "peer": lambda: run_peer(
                command, arguments.warmup + max(arguments.seconds, PEER_AVERAGE_S) + PEER_MARGIN_S, peer_settings
            ),
            "Delphi without re-use": delphi(REUSE_OFF),
        }
    if arguments.fault:
        number = FAULTS[arguments.fault]
        return {arguments.fault: lambda: delphi(fault=Fault(number))(), "healthy": delphi()}
    first, second = arguments.reward_models
    return {name: delphi(f"reward_model.name={name}") for name in (first, second)}


def run_peer(command: Sequence[str], limit_s: float, settings: dict[str, Any]) -> float:
    """A peer's frames/s; what it says of itself goes into `settings`. RuntimeError where it prints no figure in
    time."""
    with Marked() as peer:
        output = peer.folder / "output.txt"
        process = peer.start(command, output)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(
                f"the peer was not done after {limit_s:.0f} s; its last lines:\n{_tail(output)}"
            ) from None
        for line in reversed(output.read_text(errors="replace").splitlines()):
            with suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and "env_steps_per_s" in said:
                    settings.update(said | {"command": shlex.join(command[1:])})
                    return float(settings.pop("env_steps_per_s"))
        raise RuntimeError(f"the peer printed no JSON with env_steps_per_s; its last lines:\n{_tail(output)}")


def take_turns(compared: Mapping[str, Side], pairs: int) -> dict[str, list["float | Window"]]:
    """Every side `pairs` times, in turns."""
    taken: dict[str, list[float | Window]] = {name: [] for name in compared}
    for repetition in range(pairs):
        for name in list(compared) if repetition % 2 == 0 else reversed(list(compared)):
            result = compared[name]()
            taken[name].append(result)
            print(
                f"{repetition + 1} of {pairs}, {name}: {frames_per_s(result):,.0f} frames/s",
                file=sys.stderr,
                flush=True,
            )
    return taken


def frames_per_s(result: "float | Window") -> float:
    """Of a window, or what a peer said."""
    return result.frames_per_s if isinstance(result, Window) else result


def summarise(taken: Mapping[str, Sequence["float | Window"]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The report: frames/s of each side, the first against the second, and CPU time per frame of each part of
    Delphi."""
    measured = {name: [frames_per_s(result) for result in results] for name, results in taken.items()}
    first, second, *others = measured
    more: dict[str, Any] = {}
    if others:
        ratios = [divide(a, b) for a, b in zip(measured[others[0]], measured[second], strict=True)]
        more["ratio_without_reuse"] = divide(
            statistics.median(measured[others[0]]), statistics.median(measured[second])
        )
        more["ratio_without_reuse_spread"] = spread(ratios)
    more["cpu_us_per_frame"] = {
        name: cpu_medians([result for result in results if isinstance(result, Window)])
        for name, results in taken.items()
        if isinstance(results[0], Window)
    }
    return report("throughput", measured=measured, unit="frames/s", ratio_of=(first, second), settings=settings, **more)


def cpu_medians(windows: Sequence[Window]) -> dict[str, float]:
    """Median CPU time per frame (µs) of each role."""
    roles = sorted({role for window in windows for role in window.cpu_us_per_frame})
    return {
        role: round(statistics.median(window.cpu_us_per_frame.get(role, 0.0) for window in windows), 2)
        for role in roles
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 measured, 1 some run failed, 2 the command was wrong, 130 interrupted."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    for name in ("seconds", "pairs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: got {getattr(arguments, name)}, wanted at least 1")
    if arguments.against is None and (arguments.against_python or arguments.against_options):
        parser.error("--against-python and --against-options: they are of a peer; name its script with --against")
    peer: dict[str, Any] = {}
    try:
        taken = take_turns(sides(arguments, peer), arguments.pairs)
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        print(f"delphi bench throughput: {error}", file=sys.stderr)
        return 1
    settings = {name: getattr(arguments, name) for name in ("seconds", "warmup", "pairs", "overrides")}
    settings |= {"working_point": list(WORKING_POINT), "every_run": list(EVERY_RUN)} | ({"peer": peer} if peer else {})
    result = summarise(taken, settings)
    print_report(result, arguments.json)
    if not arguments.json:
        if "ratio_without_reuse" in result:
            low, high = result["ratio_without_reuse_spread"]
            print(
                f"without re-use of repeated crops: ratio {result['ratio_without_reuse']:.2f} ({low:.2f} to {high:.2f})"
            )
        for side, spent in result["cpu_us_per_frame"].items():
            print(f"CPU µs per frame, {side}: " + ", ".join(f"{role} {value:.1f}" for role, value in spent.items()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi bench throughput",
        description=(__doc__ or "").split("\n")[0],
        epilog="The peer's environment is made once, by the `pip install` lines of the docstring of its script, in\n"
        "the user's cache directory (delphi/peers); --against-python takes another interpreter instead. Without\n"
        "--against, --fault and --reward-models, retrieval is compared with none.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    compared = parser.add_mutually_exclusive_group()
    compared.add_argument(
        "--against", type=Path, metavar="SCRIPT", help="a peer's script, which takes --seconds; see below"
    )
    compared.add_argument(
        "--fault", choices=sorted(FAULTS), help="hang (SIGSTOP) or kill the service once warm, against a healthy run"
    )
    compared.add_argument(
        "--reward-models",
        nargs=2,
        default=["retrieval", "none"],
        metavar=("NAME", "NAME"),
        help="reward_model.name of two sides",
    )
    parser.add_argument(
        "--against-python",
        type=Path,
        metavar="PATH",
        help="interpreter of the peer (default: an environment made for it)",
    )
    parser.add_argument(
        "--against-options", default="", metavar="TEXT", help="further options for the peer's script, in one word"
    )
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="length of a window (default: 60)")
    parser.add_argument(
        "--warmup",
        type=float,
        default=15.0,
        metavar="S",
        help="between a run's first metric line and its window (default: 15)",
    )
    parser.add_argument(
        "--pairs", type=int, default=3, metavar="N", help="measurements of each side, in turns (default: 3)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of every Delphi run, instead of the working point's"
    )
    return parser


def _tail(output: Path) -> str:
    return output.read_text(errors="replace")[-2000:].strip() or "(it wrote nothing)"


if __name__ == "__main__":
    sys.exit(main())
