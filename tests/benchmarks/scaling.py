"""Frames/s and cost per frame as workers, environments, rollouts, batches and captions grow.

Workers are counted with an environment that sleeps through its steps, so that more workers than cores can be shown:
what is measured is what Delphi adds per worker. Environments, rollouts and batches are NetHackScore's with the
reference network. Captions are reward tables of growing size, without a run.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.verbs.bench import report, spread
from tests.benchmarks.caption_costs import caption_costs
from tests.benchmarks.scaling_figures import draw, markdown
from tests.benchmarks.whole_run import EVERY_RUN, WORKING_POINT, Window, configuration, measure

SLEEPING = (
    "env.id=tests.benchmarks.sleeping_environment:Sleeping-v0",
    "env.captioner=info:text",
    "actors.envs_per_worker=16",
    "actors.rollout_steps=32",
    "policy.hidden_size=32",
    "policy.core_size=32",
    "actors.torch_threads=1",
    "learner.torch_threads=1",
)
"""A worker takes steps of its 16 environments one after the other; the network is small."""
PARTS = {
    "workers": (1, 2, 4, 8, 16),
    "environments": (16, 32, 64, 128, 256),
    "rollout steps": (16, 32, 64, 128),
    "rollouts per batch": (1, 2, 4),
}
"""What grows, and its values; all else is the working point's."""
CAPTIONS = (1_000, 10_000, 100_000, 1_000_000)
CAPTION_REPETITIONS = 15
LOOK_UP = "look_up of 4096 ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One configuration that is run."""

    part: str
    value: int
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        """As it stands in the report."""
        return f"{self.part} {self.value}"


def points(parts: Sequence[str], step_ms: float, overrides: Sequence[str]) -> list[Point]:
    """The runs of `parts`, each with its whole settings; ValueError for a setting that is wrong."""
    made = []
    for part in parts:
        for value in PARTS.get(part, ()):
            settings: tuple[str, ...]
            if part == "workers":  # a batch takes one rollout of each, so that the number of updates per second stays
                settings = (*SLEEPING, f"env.options={{step_s: {step_ms / 1000:g}}}", f"actors.num_workers={value}")
                settings += (f"learner.rollouts_per_batch={value}", f"logging.interval_env_steps={1000 * value}")
            else:
                key = {"environments": "actors.envs_per_worker", "rollout steps": "actors.rollout_steps"}.get(
                    part, "learner.rollouts_per_batch"
                )
                changed = [f"{key}={value}" if setting.startswith(f"{key}=") else setting for setting in WORKING_POINT]
                settings = (*changed, "logging.interval_env_steps=4096")
            configuration([*settings, *overrides])
            made.append(Point(part=part, value=value, settings=(*settings, *overrides)))
    return made


def run(
    wanted: Sequence[Point], *, seconds: float, warmup_s: float, repetitions: int
) -> dict[tuple[str, ...], list[Window]]:
    """Windows by settings, the settings in turns; those that several parts share are run once."""
    windows: dict[tuple[str, ...], list[Window]] = {point.settings: [] for point in wanted}
    names = {point.settings: point.name for point in reversed(wanted)}
    for repetition in range(repetitions):
        for settings in list(windows) if repetition % 2 == 0 else reversed(list(windows)):
            window = measure(settings, seconds=seconds, warmup_s=warmup_s)
            windows[settings].append(window)
            said = f"{repetition + 1} of {repetitions}, {names[settings]}: {window.frames_per_s:,.0f} frames/s"
            print(said, file=sys.stderr, flush=True)
    return windows


def rows(wanted: Sequence[Point], windows: dict[tuple[str, ...], list[Window]]) -> list[dict[str, Any]]:
    """One row per point: medians of frames/s and of CPU time per frame by role."""
    made = []
    for point in wanted:
        taken, config = windows[point.settings], configuration(point.settings)
        roles = {role for window in taken for role in window.cpu_us_per_frame}
        rates = [window.frames_per_s for window in taken]
        made.append(
            {
                "part": point.part,
                "value": point.value,
                "batch_frames": config.learner.rollouts_per_batch
                * config.actors.rollout_steps
                * config.actors.envs_per_worker,
                "frames_per_s": statistics.median(rates),
                "frames_per_s_spread": spread(rates),
                "cpu_us_per_frame": {
                    role: statistics.median(window.cpu_us_per_frame.get(role, 0.0) for window in taken)
                    for role in sorted(roles)
                },
            }
        )
    return made


def summarise(
    wanted: Sequence[Point], windows: dict[tuple[str, ...], list[Window]], tables: Sequence[Any], settings: Any
) -> dict[str, Any]:
    """The report; its ratio is of the first part's last point to its first."""
    if wanted:
        measured = {point.name: [window.frames_per_s for window in windows[point.settings]] for point in wanted}
        first = [point.name for point in wanted if point.part == wanted[0].part]
        unit, ratio_of = "frames/s", (first[-1], first[0])
    else:
        measured = {f"captions {row['captions']}": row["repetitions"]["look_up"] for row in tables}
        unit, ratio_of = f"us per {LOOK_UP}", (list(measured)[-1], next(iter(measured)))
    return report(
        "scaling",
        measured=measured,
        unit=unit,
        ratio_of=ratio_of,
        settings=settings,
        points=rows(wanted, windows),
        captions=list(tables),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 measured, 1 some run failed, 2 the command was wrong, 130 interrupted."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    for name in ("seconds", "repetitions", "step_ms"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, wanted more than 0")
    parts = [part.replace("-", " ") for part in arguments.parts]
    try:
        wanted = points(parts, arguments.step_ms, arguments.overrides)
        tables = caption_costs(CAPTIONS, CAPTION_REPETITIONS) if "captions" in parts else []
        windows = run(wanted, seconds=arguments.seconds, warmup_s=arguments.warmup, repetitions=arguments.repetitions)
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        print(f"delphi bench scaling: {error}", file=sys.stderr)
        return 1
    settings = {name: getattr(arguments, name) for name in ("seconds", "warmup", "repetitions", "step_ms", "overrides")}
    settings |= {"working_point": list(WORKING_POINT), "sleeping": list(SLEEPING), "every_run": list(EVERY_RUN)}
    result = summarise(wanted, windows, tables, settings)
    if arguments.figure:
        draw(result, arguments.figure)
    print(json.dumps(result) if arguments.json else markdown(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    names = [*(part.replace(" ", "-") for part in PARTS), "captions"]
    parser = argparse.ArgumentParser(prog="delphi bench scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--figure", type=Path, metavar="PATH", help="draw the results there, as PNG or SVG")
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, metavar="PART", help=f"of {', '.join(names)} (default: all)"
    )
    parser.add_argument(
        "--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings for every run"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, metavar="S", help="length of a run's window (default: 20)"
    )
    parser.add_argument(
        "--warmup",
        type=float,
        default=8.0,
        metavar="S",
        help="between a run's first metric line and its window (default: 8)",
    )
    parser.add_argument(
        "--repetitions", type=int, default=2, metavar="N", help="runs of each kind, in turns (default: 2)"
    )
    parser.add_argument(
        "--step-ms", type=float, default=2.0, metavar="MS", help="of the sleeping environment (default: 2)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
