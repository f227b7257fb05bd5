"""`delphi sweep`: trains every arm of a sweep file on every task with every seed, evaluates the runs and compares them.

Invariant: runs that are done are left as they are and the others continue, so the same command finishes a sweep that
was stopped. Runs share nothing but the store of judgements.
"""

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.sweep.compare import SWEEP_FILE
from configs.checks import ConfigError
from configs.paths import path_argument
from llm_server.standard_output import guarded, output_may_be_lost

if TYPE_CHECKING:  # --help must not load torch
    from cluster.sweep.sweep_file import PlannedRun, Sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 all runs are done, 1 some are not (the same command continues), 2 an invalid command or file."""
    arguments = _parser().parse_args(argv)
    output_may_be_lost()
    try:
        return _sweep(arguments)
    except ConfigError as error:
        print(f"delphi sweep: {error}", file=sys.stderr)
        return 2


def _sweep(arguments: argparse.Namespace) -> int:
    from cluster.run.session import StopRequest
    from cluster.sweep.compare import write_comparison
    from cluster.sweep.recorded import take_over
    from cluster.sweep.results import is_done
    from cluster.sweep.sweep_file import read_sweep, selected

    for name, least in (("jobs", 0), ("seeds", 1)):
        if (number := getattr(arguments, name)) is not None and number < least:
            raise ConfigError(f"--{name}: got {number}, wanted at least {least}")
    if arguments.jobs and arguments.address:
        raise ConfigError("--jobs: got it with --address, whose cluster has as many CPUs as it has; give one of them")
    file = Path(arguments.file)
    out = (Path(arguments.out) if arguments.out else default_out(file)).absolute()
    whole = read_sweep(file)
    sweep = selected(whole, arguments.tasks or [], arguments.arms or [], arguments.seeds)
    runs = list(sweep.runs(out))
    for recorded in map(Path, arguments.recorded or []):
        taken, others = take_over(recorded, runs, sweep)
        _say(f"{taken} runs are taken over from {recorded}")
        if others:
            _say(f"{len(others)} of its runs have other settings here and are not, {others[0]} for one")
    if arguments.list:
        for run in runs:
            print(f"{'done' if is_done(run, sweep) else 'to do'}  {run.place}")
        return 0
    with _entered(out, starts_cluster=not arguments.address) as sessions, StopRequest(_say) as stop:
        left = [run for run in runs if not is_done(run, sweep)]
        _say(f"{len(runs)} runs in {out}: {len(runs) - len(left)} done, {len(left)} to do")
        if file.absolute() != (out / SWEEP_FILE).absolute():
            shutil.copyfile(file, out / SWEEP_FILE)
        progress = Progress(sweep, len(left))
        if left:
            from cluster.sweep.schedule import run_all  # imports Ray, after the token is set

            run_all(
                left,
                sweep,
                address=arguments.address,
                jobs=arguments.jobs,
                sessions=sessions,
                on_end=progress.ended,
                stop_requested=lambda: stop.requested,
            )
        written = write_comparison(whole, list(whole.runs(out)), out)
    unfinished = sum(not is_done(run, sweep) for run in left)
    if written:
        _say(f"results of {written} runs: {out / 'results.md'}")
    if unfinished:
        failed = f" ({progress.num_failed} failed)" if progress.num_failed else ""
        _say(f"{unfinished} of {len(runs)} runs are not done{failed}; the same command continues")
    return 1 if unfinished else 0


def default_out(file: Path) -> Path:
    """runs/sweeps/ and the folder of a file called sweep.yaml, else that and the file's own name."""
    folder = file.absolute().parent.name
    return Path("runs") / "sweeps" / (folder if file.name == SWEEP_FILE else f"{folder}_{file.stem}")


class Progress:
    """Says what came of each run, and how long the rest will take."""

    def __init__(self, sweep: "Sweep", num_runs: int) -> None:
        self._num_ended = self.num_failed = 0
        self._sweep, self._num_runs, self._began = sweep, num_runs, time.monotonic()

    def ended(self, run: "PlannedRun", problem: str | None) -> None:
        """One run has ended, with or without a problem."""
        self._num_ended += 1
        self.num_failed += problem is not None
        left_s = (time.monotonic() - self._began) / self._num_ended * (self._num_runs - self._num_ended)
        told = problem or self._figures(run)
        _say(f"{run.place}: {told}; {self._num_ended} of {self._num_runs}, about {left_s / 60:.0f} min left")

    def _figures(self, run: "PlannedRun") -> str:
        from cluster.sweep.results import collect

        (figures,) = collect([run], self._sweep)
        players = ", ".join(f"{player} {figures[player]:.3g}" for player in ("policy", "blind", "random"))
        return f"{self._sweep.metric} {players}"


@contextlib.contextmanager
def _entered(out: Path, *, starts_cluster: bool) -> Iterator[Path | None]:
    """The output folder, locked; for a sweep that starts its own Ray cluster, with a token and a watch for that, and
    yields the folder for its session."""
    from cluster.on_ray.orphans import OrphanWatch
    from cluster.run import temporary
    from cluster.run.directory import lock

    try:
        out.mkdir(parents=True, exist_ok=True)
        held = lock(out, "--out")
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}; choose another --out") from None
    with held:
        if not starts_cluster:
            yield None
            return
        directory, sessions = temporary.begin(str(out))
        temporary.use_private_token(directory)
        try:
            with OrphanWatch(directory, sessions):
                yield sessions
        finally:
            temporary.sweep(str(out))


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi sweep",
        description="Train every arm of a sweep file on every task with every seed, as Ray tasks, evaluate the runs on"
        " held-out episodes, and compare the arms. Running the same command again continues.",
        epilog="examples:\n"
        "  delphi sweep docs/results/minihack/sweep.yaml --list\n"
        "  delphi sweep docs/results/minihack/sweep.yaml --jobs 2 --seeds 3\n"
        "  ray job submit ... -- python -m cluster.sweep.command SWEEP.yaml --address auto --out /shared/sweep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=path_argument, metavar="FILE", help="the sweep file (docs/sweeps.md)")
    out = "folder of the runs and results (default: runs/sweeps/ and the folder of FILE)"
    parser.add_argument("--out", type=path_argument, metavar="DIR", help=out)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms")
    parser.add_argument("--seeds", type=int, metavar="N", help="only the first N seeds of each arm")
    recorded = "a results.json: its runs with the same settings, another machine's say, count as done here"
    parser.add_argument("--recorded", type=path_argument, nargs="+", metavar="FILE", help=recorded)
    jobs = "CPUs of the Ray cluster that is started here (default: one per core); a run takes the sweep file's `cpus`"
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help=jobs)
    address = "an existing Ray cluster, `auto` within a Ray job (default: start one here)"
    parser.add_argument("--address", default="", metavar="ADDRESS", help=address)
    parser.add_argument("--list", action="store_true", help="print the runs and which of them are done, and exit")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
