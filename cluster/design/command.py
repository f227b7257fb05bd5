"""`delphi design`: a campaign that writes reward programs, trains agents by them and keeps the best one.

Invariant: everything that can be refused is refused before anything is written or trained; the same command goes on
with a campaign that was ended.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.checks import ConfigError
from configs.errors import one_line
from configs.flags import add_configuration
from configs.paths import path_argument
from llm_server.progress import say_on_stderr
from llm_server.standard_output import guarded, output_may_be_lost

if TYPE_CHECKING:  # --help must not load torch
    from cluster.design.authors import Author
    from cluster.design.campaign import Campaign
    from cluster.design.plan import Plan
    from cluster.run.session import StopRequest

JOURNAL = "campaign.jsonl"
CONTINUES = "the same command goes on from here"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 there is a winner, 1 there is none, or the campaign was ended (the same command goes on), 2 an
    invalid command."""
    arguments = _parser().parse_intermixed_args(argv)
    output_may_be_lost()
    try:
        return _design(arguments)
    except ConfigError as error:
        print(f"delphi design: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"delphi design: interrupted; {CONTINUES}", file=sys.stderr)
        return 1


def _design(arguments: argparse.Namespace) -> int:
    from cluster.design.campaign import Campaign
    from cluster.design.gating import ArchiveGates
    from cluster.design.journal import Journal
    from cluster.design.plan import Stopped
    from cluster.design.report import write_report
    from cluster.design.runs import TrialTrainer
    from cluster.design.settings import check_settings, planned
    from cluster.run.directory import lock
    from cluster.run.session import StopRequest

    plan = planned(arguments)
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
        held = lock(plan.out, "--out")
    except OSError as error:
        raise ConfigError(f"--out: cannot write {plan.out}: {error.strerror}; choose another --out") from None
    with held, StopRequest(say_on_stderr) as stop:
        journal = Journal(plan.out / JOURNAL)
        plan = check_settings(journal, plan, arguments)

        def is_stopped() -> bool:
            return stop.requested

        try:
            with _author(arguments, plan, stop) as author:
                trainer = TrialTrainer(arguments.episodes, arguments.envs)
                gates = ArchiveGates(plan.features, plan.actions)
                campaign = Campaign(plan, journal, author, gates, trainer, is_stopped=is_stopped, on_round=write_report)
                campaign.run()
        except Stopped:
            say_on_stderr(f"delphi design: stopped; {CONTINUES}")
            return 1
        except (RuntimeError, EOFError, OSError) as error:
            what = one_line(error) or "--select ask: standard input ended, wanted an answer"
            say_on_stderr(f"delphi design: {what}; {CONTINUES}")
            return 1
    return _told(campaign, is_pool=bool(arguments.programs))


@contextlib.contextmanager
def _author(arguments: argparse.Namespace, plan: "Plan", stop: "StopRequest") -> "Iterator[Author]":
    from cluster.design.authors import Pool, service_author

    if arguments.programs:
        yield Pool(Path(arguments.programs), plan.base.seed if arguments.shuffle else None)
        return
    with service_author(plan.base, say_on_stderr, lambda: stop.requested) as author:
        yield author


def _told(campaign: "Campaign", *, is_pool: bool) -> int:
    from cluster.design.report import paths

    report, program = paths(campaign.plan.out)
    if campaign.ended:
        say_on_stderr(f"delphi design: ended early: {campaign.ended}")
    if winner := campaign.winner:
        print(f"program {winner.name}: {'; '.join(run.told for run in winner.outcomes)}")
        print(f"{program}\n{report}")
        return 0
    problems = campaign.room.problems()
    if not campaign.candidates and problems:
        number, last = campaign.room.num_writings, problems[-1]
        what = f"none of {number} {'texts' if is_pool else 'writings'} is a program (the last one: {last})"
        what += "" if is_pool else "; take a larger model (service.model, writer.address), or give --programs FILE"
    elif not campaign.candidates:
        what = "nothing was written"
    elif died := [each.problem for each in campaign.candidates.values() if each.problem]:
        what = f"no run came to its end; the first {died[0]}"
    else:
        what = "every program was refused by a gate"
    print(f"delphi design: no winner: {what}; see {report}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi design",
        description="Write reward programs with a language model, refuse those that cannot be right, train an agent by"
        " each of the others, show the model what came of it, and keep the program of the best agent. Running the same"
        " command again continues.",
        epilog="examples:\n"
        "  delphi design --kind eureka --preset minigrid_doorkey env.features=[minigrid] --steps 100000 \\\n"
        '    --task "Pick up the key, open the door, reach the goal." --out runs/doorkey writer.address=host:50051\n'
        "  delphi design --kind card --config run.yaml --programs programs.jsonl --out runs/pool --jobs 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", default="eureka", metavar="NAME", help="kind of campaign (default: eureka)")
    add_configuration(parser, "preset of the runs")
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="folder of the campaign")
    parser.add_argument("--task", default="", metavar="TEXT", help="the task in one sentence (default: goals.task)")
    parser.add_argument("--steps", type=int, metavar="N", help="environment steps of a run (default: total_env_steps)")
    parser.add_argument("--feedback", default="", metavar="TEXT", help="a remark for the writer: adds one round")
    pool = "take the programs of a file of JSON lines instead of writing them"
    parser.add_argument("--programs", type=path_argument, metavar="FILE", help=pool)
    parser.add_argument("--shuffle", action="store_true", help="take them in a random order, by the setting `seed`")
    archive = "a run that keeps its episodes, for the gates (default: one of the campaign's runs)"
    parser.add_argument("--archive", type=path_argument, metavar="RUN", help=archive)
    parser.add_argument("--episodes", type=int, default=64, metavar="N", help="held-out episodes per run (default 64)")
    parser.add_argument("--envs", type=int, default=16, metavar="N", help="environments of the evaluation (default 16)")
    group = parser.add_argument_group("instead of what the kind says")
    for name, what in (("rounds", "rounds"), ("samples", "programs per round"), ("seeds", "runs per program")):
        group.add_argument(f"--{name}", type=int, metavar="N", help=what)
    group.add_argument("--select", metavar="HOW", help="who orders programs: score, ask or judge")
    group.add_argument("--critic", action=argparse.BooleanOptionalAction, help="a model reads programs before training")
    group.add_argument("--analyse", action=argparse.BooleanOptionalAction, help="a model says what the best one lacks")
    group = parser.add_argument_group("budgets and load")
    group.add_argument("--max-env-steps", type=int, default=0, metavar="N", help="of all runs (default: no limit)")
    group.add_argument("--max-writings", type=int, default=0, metavar="N", help="of the campaign (default: no limit)")
    group.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
