"""`delphi eval`: plays a run's latest checkpoint on held-out seeds beside a blind player and a random one.

Invariant: the same command gives the same numbers, whether games are played or were kept by an earlier command.
"""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from configs.checks import ConfigError
from configs.paths import path_argument
from llm_server.progress import say_on_stderr
from llm_server.standard_output import guarded

if TYPE_CHECKING:  # --help must not load torch
    from learner.evaluation import Episodes, Estimate


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 interrupted (the same command continues), 2 an invalid command or run."""
    parser = argparse.ArgumentParser(
        prog="delphi eval",
        description="Play a run's latest checkpoint on held-out seeds; beside it on the same seeds a blind player,"
        " which draws from the policy's average action frequencies without looking, and a random one.",
    )
    add_game_flags(parser)
    seconds = "play in rounds of one episode per environment, and count those that all three players finish in S"
    seconds += " seconds (default: no limit)"
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help=seconds)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    again = "play all games anew, also those that an earlier command has kept in the run directory"
    parser.add_argument("--again", action="store_true", help=again)
    arguments = parser.parse_args(argv)
    from learner.checkpoint import CheckpointError

    try:
        check_game_flags(arguments)
        if not 0 <= arguments.seconds < math.inf:
            raise ConfigError(f"--seconds: got {arguments.seconds:g}, wanted a number from 0 on")
        sizes = {"episodes": arguments.episodes, "num_envs": arguments.envs}
        options = {"seed": arguments.seed, "seconds": arguments.seconds, "again": arguments.again}
        report = evaluate(arguments.run, **sizes, **options)
    except KeyboardInterrupt:
        kept = "" if arguments.seconds else "; players that have finished are kept, the same command continues"
        print(f"delphi eval: interrupted{kept}", file=sys.stderr)
        return 1
    except (ValueError, CheckpointError) as error:
        print(f"delphi eval: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report))
    else:
        _print_table(report)
    return 0


def add_game_flags(parser: argparse.ArgumentParser) -> None:
    """The run, and the flags that say which games of it."""
    parser.add_argument("run", type=path_argument, metavar="RUN", help="a run directory")
    parser.add_argument("--episodes", type=int, default=64, metavar="N", help="episodes per player (default 64)")
    envs = "environments played side by side (default 16)"
    parser.add_argument("--envs", type=int, default=16, metavar="N", help=envs)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which held-out seeds (default 0)")


def check_game_flags(arguments: argparse.Namespace) -> None:
    """ConfigError for numbers that are no games."""
    for name, least in (("episodes", 1), ("envs", 1), ("seed", 0)):
        if getattr(arguments, name) < least:
            raise ConfigError(f"--{name}: got {getattr(arguments, name)}, wanted at least {least}")


def evaluate(
    run_dir: str,
    *,
    episodes: int,
    num_envs: int,
    seed: int,
    seconds: float = 0.0,
    again: bool = False,
    say: Callable[[str], None] = say_on_stderr,
) -> dict[str, Any]:
    """Metrics of the three players and their differences as JSON values: each a mean with its 95 % interval.

    Players whose games are kept in the run directory are not played anew, unless `again`. With `seconds` it plays in
    rounds, one episode per environment and player: the first with `num_envs` environments, each further one with as
    many as are likely to end in time. A round that does not end in time is left out for all players, and none is kept.
    Raises ConfigError.
    """
    from cluster.run.evaluation import PLAYERS, Evaluation, Games, kept_games, load_subject
    from learner.evaluation import OutOfTime, differences, summarise

    deadline = time.monotonic() + seconds if seconds else math.inf
    subject = load_subject(run_dir)
    num_envs = min(num_envs, episodes)
    per_env = 1 if seconds else -(-episodes // num_envs)
    played: dict[str, Episodes] = {name: {} for name in PLAYERS}
    information: list[float] = []
    # Also the number of a round's first environment: several rounds play one episode per environment each.
    num_played = 0
    while num_envs > 0:
        began = time.monotonic()
        games = Games(num_envs=num_envs, per_env=per_env, seed=seed, round=len(information))
        kept = None if seconds else kept_games(subject, games)
        if kept is not None and again:
            kept.players.clear()
        evaluation = Evaluation(subject, games, say, kept=kept, is_time_up=lambda: time.monotonic() > deadline)
        try:
            of_round = {name: evaluation.of(name) for name in PLAYERS}
        except OutOfTime:
            break
        information.append(of_round["policy"].information or 0.0)
        for name, player in of_round.items():
            finished = player.episodes
            played[name] |= {(num_played + i, episode): metrics for (i, episode), metrics in finished.items()}
        num_played += num_envs * per_env
        now = time.monotonic()
        # A round n times as large takes less than n times as long.
        num_envs = min(int((deadline - now) / (now - began) * num_envs), episodes - num_played) if seconds else 0
    if not information:
        round_ = f"one game in each of {num_envs} environments"
        raise ConfigError(f"{round_} takes all players together more than {seconds:.0f} s")
    pairs = itertools.combinations(played, 2)
    return {
        "run": str(subject.run.path),
        "env_steps": subject.env_steps,
        "environment": subject.config.env.id,
        "episodes": num_played,
        "episodes_lost": {name: num_played - len(games) for name, games in played.items()},
        "seed": seed,
        "policy_state_information": sum(information) / len(information),
        **{name: _as_json(summarise(games)) for name, games in played.items()},
        "differences": {f"{one} - {two}": _as_json(differences(played[one], played[two])) for one, two in pairs},
    }


def _as_json(estimates: Mapping[str, "Estimate"]) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in estimates.items()}


def _interval_text(mean: float, low: float, high: float) -> str:
    """Mean and interval, short enough for three on a line of 80 characters."""
    largest = max(abs(low), abs(high))
    digits = 0 if largest >= 100 else 1 if largest >= 10 else 2
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from cluster.run.evaluation import PLAYERS

    console = Console(soft_wrap=True, markup=False, emoji=False)
    title = f"{report['environment']}, {report['episodes']} episodes, checkpoint at {report['env_steps']:,} steps"
    tables = {
        f"{title} (mean, 95 % interval)": {name: report[name] for name in PLAYERS},
        "the same games, one player minus another": report["differences"],
    }
    for title, columns in tables.items():
        table = Table("", *(Column(name, justify="right") for name in columns), title=title, title_justify="left")
        for name in report["policy"]:
            cells = [metrics.get(name) for metrics in columns.values()]
            table.add_row(name, *("-" if cell is None else _interval_text(**cell) for cell in cells))
        console.print(table)
    information = f"{report['policy_state_information']:.4f} nats"
    console.print(f"information between state and action: {information} (a policy that does not look has 0)")
    if any(report["episodes_lost"].values()):
        lost = ", ".join(f"{name} {number}" for name, number in report["episodes_lost"].items())
        console.print(f"episodes lost because the environment raised: {lost}")


if __name__ == "__main__":
    sys.exit(guarded(main))
