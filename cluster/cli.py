"""The console script `delphi`: finds the verb and calls it.

Invariant: imports nothing heavy, so that `--help` answers at once; every invalid command is one line and exit code 2.
"""

import importlib
import sys
from collections.abc import Sequence
from functools import partial

from configs.errors import did_you_mean
from llm_server.standard_output import guarded

VERBS: dict[str, tuple[str, str]] = {
    "train": ("cluster.train", "train an agent; running the same command again continues the run"),
    "serve": ("llm_server.serve", "run the annotation service alone, without Ray"),
    "eval": ("cluster.verbs.evaluate", "play a checkpoint on held-out seeds, beside a blind and a random player"),
    "sweep": ("cluster.sweep.command", "train arms of an experiment on several tasks and seeds, and compare them"),
    "compare": ("cluster.sweep.compare", "compare the arms of a sweep: tables, tests and pictures"),
    "design": (
        "cluster.design.command",
        "write reward programs, train agents by them, and keep the best one",
    ),
    "replay": ("cluster.replay.command", "play a game of the evaluation back in the terminal, or write it to a file"),
    "audit": (
        "cluster.verbs.audit",
        "compare a judge, or a run's reward model, with captions that people have labelled",
    ),
    "annotate": ("llm_server.offline.annotate", "judge captions, and pairs of them, into a file for offline training"),
    "linear-program": (
        "cluster.programs.command",
        "ask a judge which features are good for a task, and write the linear reward program",
    ),
    "export": (
        "cluster.export.command",
        "write a run's captions as JSON lines, or its policy or reward model as a folder that loads anywhere",
    ),
    "new-environment": ("cluster.new_environment.command", "write a captioner, rubric and configuration to start from"),
    "report": (
        "cluster.report.command",
        "write a page about runs: curves, alarms, captions, replays, a Reward Report",
    ),
    "goals": ("cluster.goals.command", "print the goals of a run, and how each was achieved and paid"),
    "reward-report": (
        "cluster.report.reward_command",
        "write what a run optimises, by whom it is judged, what was paid, and what is unknown",
    ),
    "dashboard": ("cluster.dashboards.command", "write the Grafana dashboard and Prometheus alerts"),
    "doctor": ("cluster.doctor.command", "check this machine and what a configuration needs, and say what to do"),
    "bench": ("cluster.verbs.bench", "run a benchmark of the checkout against its baseline"),
}


def run_verb(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` begins with; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    verb = arguments[0]
    if verb == "--version":
        from importlib.metadata import version

        print(f"delphi {version('delphi-rl')}")
        return 0
    if verb not in VERBS:
        known = f"there are: {', '.join(VERBS)}"
        print(f"delphi: unknown verb {verb!r}{did_you_mean(verb, VERBS)}; {known}", file=sys.stderr)
        return 2
    return importlib.import_module(VERBS[verb][0]).main(arguments[1:])


def _help() -> str:
    lines = [f"  {verb:<17}{text}" for verb, (_, text) in VERBS.items()]
    return (
        "usage: delphi VERB [options]\n\n"
        "Trains reinforcement-learning agents whose intrinsic reward comes from a language model, while they train.\n\n"
        + "\n".join(lines)
        + "\n\n`delphi VERB --help` explains one. To begin: delphi train --preset debug"
    )


main = partial(guarded, run_verb)
"""The console script; every verb runs with guarded output."""

if __name__ == "__main__":
    sys.exit(main())
