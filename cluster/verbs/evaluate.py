"""`delphi eval`: plays a run's latest checkpoint on held-out seeds beside a blind player and a random one, and, where
asked for, the language model itself as a player.

Invariant: the same command gives the same numbers, whether games are played or were kept by an earlier command.
"""

import argparse
import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from configs.checks import ConfigError
from configs.errors import one_line
from configs.paths import path_argument
from llm_server.progress import say_on_stderr
from llm_server.standard_output import guarded

if TYPE_CHECKING:  # --help must not load torch
    from rich.console import Console

    from cluster.run.evaluation import Subject
    from cluster.run.judge_seat import JudgeSeat
    from learner.evaluation import Episodes, Estimate
    from learner.game_log import PlayedGames

    Round = tuple[int, dict[str, PlayedGames]]
    """How many episodes each player played, and their games."""

MAX_COLUMNS = 3
"""Of a table, so that it fits into 80 characters."""
PLAYER_NAMES = ("policy", "blind", "random", "judge")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 interrupted or the judge failed (the same command continues), 2 an invalid command or
    run."""
    parser = argparse.ArgumentParser(
        prog="delphi eval",
        description="Play a run's latest checkpoint on held-out seeds; beside it on the same seeds a blind player,"
        " which draws from the policy's average action frequencies without looking, and a random one. With --player"
        " judge the run's language model plays too.",
    )
    add_game_flags(parser)
    seconds = "play in rounds of one episode per environment, and count those that all players finish in S seconds"
    seconds += " (default: no limit)"
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help=seconds)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    again = "play all games anew, also those that an earlier command has kept in the run directory"
    parser.add_argument("--again", action="store_true", help=again)
    _add_judge_flags(parser)
    arguments = parser.parse_args(argv)
    from learner.checkpoint import CheckpointError
    from llm_server.playing.action_judge import JudgeFailed

    try:
        check_game_flags(arguments)
        if not 0 <= arguments.seconds < math.inf:
            raise ConfigError(f"--seconds: got {arguments.seconds:g}, wanted a number from 0 on")
        sizes = {"episodes": arguments.episodes, "num_envs": arguments.envs}
        options = {"seed": arguments.seed, "seconds": arguments.seconds, "again": arguments.again}
        report = evaluate(arguments.run, **sizes, **options, players=arguments.player, judge=_judge_options(arguments))
    except (KeyboardInterrupt, JudgeFailed) as error:
        kept = "" if arguments.seconds else "; players that have finished are kept, the same command continues"
        print(f"delphi eval: {one_line(error, 500) or 'interrupted'}{kept}", file=sys.stderr)
        return 1
    except (ValueError, CheckpointError) as error:
        print(f"delphi eval: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report))
    else:
        _print_table(report)
    return 0


def _add_judge_flags(parser: argparse.ArgumentParser) -> None:
    player = "play only this player; may be given several times (default: policy, blind and random)"
    parser.add_argument("--player", action="append", choices=PLAYER_NAMES, metavar="NAME", help=player)
    group = parser.add_argument_group(
        "--player judge",
        "The run's language model (service.*) reads each state in words, and the last caption, and answers with an"
        " action, which is drawn from the probabilities of all of them.",
    )
    rubric = "a play rubric, built in or a YAML file (default: that of the describer)"
    group.add_argument("--rubric", type=path_argument, metavar="RUBRIC", default="", help=rubric)
    describer = "what puts states into words, in place of env.describer"
    group.add_argument("--describer", metavar="NAME", default="", help=describer)
    group.add_argument("--greedy", action="store_true", help="play the likeliest action instead of drawing one")


def _judge_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of `JudgeSeat`. ConfigError for flags of a judge that does not play."""
    options = {name: getattr(arguments, name) for name in ("rubric", "describer", "greedy")}
    for name, value in options.items():
        if value and "judge" not in (arguments.player or ()):
            raise ConfigError(f"--{name}: got it without --player judge, wanted both or neither")
    return options


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
    players: Sequence[str] | None = None,
    judge: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = say_on_stderr,
) -> dict[str, Any]:
    """Metrics of the players and their differences as JSON values: each a mean with its 95 % interval. `players`:
    names, by default policy, blind and random; `judge`: options of `JudgeSeat`.

    Players whose games are kept in the run directory are not played anew, unless `again`. With `seconds` it plays in
    rounds, one episode per environment and player: the first with `num_envs` environments, each further one with as
    many as are likely to end in time. A round that does not end in time is left out for all players, and none is kept.
    Raises ConfigError, and JudgeFailed where the language model does not answer any more.
    """
    from cluster.run.evaluation import PLAYERS, load_subject
    from cluster.run.judge_seat import JUDGE, JudgeSeat

    subject = load_subject(run_dir)
    names = [name for name in (*PLAYERS, JUDGE) if name in (players or PLAYERS)]
    seat = JudgeSeat(subject.config, **(judge or {})) if JUDGE in names else None
    with contextlib.closing(seat) if seat else contextlib.nullcontext():
        rounds = _play_rounds(subject, names, seat, episodes, min(num_envs, episodes), seed, seconds, again, say)
    return _report(subject, seed, names, rounds, seat)


def _play_rounds(
    subject: "Subject",
    names: Sequence[str],
    seat: "JudgeSeat | None",
    episodes: int,
    num_envs: int,
    seed: int,
    seconds: float,
    again: bool,
    say: Callable[[str], None],
) -> "list[Round]":
    """The games of one round, with `seconds` of as many as end in time; see `evaluate`."""
    from cluster.run.evaluation import Evaluation, Games, kept_games
    from learner.evaluation import OutOfTime

    deadline = time.monotonic() + seconds if seconds else math.inf
    per_env = 1 if seconds else -(-episodes // num_envs)
    rounds: list[Round] = []
    num_played = 0
    while num_envs > 0:
        began = time.monotonic()
        games = Games(num_envs=num_envs, per_env=per_env, seed=seed, round=len(rounds))
        kept = None if seconds else kept_games(subject, games)
        if kept is not None and again:
            for name in names:
                kept.players.pop(name if seat is None else seat.key_of(name), None)
        is_time_up = partial(_is_after, deadline)
        evaluation = Evaluation(subject, games, say, kept=kept, is_time_up=is_time_up, seat=seat)
        try:
            rounds.append((num_envs * per_env, {name: evaluation.of(name) for name in names}))
        except OutOfTime:
            break
        num_played += num_envs * per_env
        now = time.monotonic()
        # A round n times as large takes less than n times as long.
        num_envs = min(int((deadline - now) / (now - began) * num_envs), episodes - num_played) if seconds else 0
    if not rounds:
        round_ = f"one game in each of {num_envs} environments"
        raise ConfigError(f"{round_} takes all players together more than {seconds:.0f} s")
    return rounds


def _is_after(deadline: float) -> bool:
    return time.monotonic() > deadline


def _report(
    subject: "Subject", seed: int, names: Sequence[str], rounds: "Sequence[Round]", seat: "JudgeSeat | None"
) -> dict[str, Any]:
    from learner.evaluation import differences, summarise

    played: dict[str, Episodes] = {name: {} for name in names}
    # Also the number of a round's first environment: several rounds play one episode per environment each.
    num_played = 0
    for size, of_round in rounds:
        for name, player in of_round.items():
            finished = player.episodes
            played[name] |= {(num_played + i, episode): metrics for (i, episode), metrics in finished.items()}
        num_played += size

    def information(name: str) -> float:
        return sum(of_round[name].information or 0.0 for _, of_round in rounds) / len(rounds)

    looking: dict[str, Any] = {"policy_state_information": information("policy")} if "policy" in names else {}
    if seat:
        shares = [of_round["judge"].frequencies for _, of_round in rounds]
        means = [sum(of_action) / len(rounds) for of_action in zip(*shares, strict=True)]
        looking["judge_player"] = seat.facts() | {
            "state_information": information("judge"),
            "action_shares": {name: float(mean) for name, mean in zip(seat.action_names, means, strict=True)},
        }
    pairs = itertools.combinations(played, 2)
    return {
        "run": str(subject.run.path),
        "env_steps": subject.env_steps,
        "environment": subject.config.env.id,
        "episodes": num_played,
        "episodes_lost": {name: num_played - len(games) for name, games in played.items()},
        "seed": seed,
        **looking,
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

    names = [name for name in PLAYER_NAMES if name in report]
    console = Console(soft_wrap=True, markup=False, emoji=False)
    title = f"{report['environment']}, {report['episodes']} episodes, checkpoint at {report['env_steps']:,} steps"
    tables: dict[str, dict[str, Any]] = {
        f"{title} (mean, 95 % interval)": {name: report[name] for name in names},
        "the same games, one player minus another": report["differences"],
    }
    for title, columns in tables.items():
        for first in range(0, len(columns), MAX_COLUMNS):
            shown = dict(itertools.islice(columns.items(), first, first + MAX_COLUMNS))
            table = Table("", *(Column(name, justify="right") for name in shown), title=title, title_justify="left")
            for name in report[names[0]]:
                cells = [metrics.get(name) for metrics in shown.values()]
                table.add_row(name, *("-" if cell is None else _interval_text(**cell) for cell in cells))
            console.print(table)
    if "policy" in names:
        information = f"{report['policy_state_information']:.4f} nats"
        console.print(f"information between state and action: {information} (a policy that does not look has 0)")
    if "judge" in names:
        _print_judge(console, report["judge_player"])
    if any(report["episodes_lost"].values()):
        lost = ", ".join(f"{name} {number}" for name, number in report["episodes_lost"].items())
        console.print(f"episodes lost because the environment raised: {lost}")


def _print_judge(console: "Console", judge: dict[str, Any]) -> None:
    asked = f"{judge['model'] or judge['engine']}, {judge['play_rubric']}" + ", greedy" * judge["greedy"]
    information = f"information between state and action {judge['state_information']:.4f} nats"
    shares: dict[str, float] = judge["action_shares"]
    likeliest = max(shares, key=shares.__getitem__)
    console.print(f"judge ({asked}): {information}; likeliest action {likeliest}, {shares[likeliest]:.0%} of its steps")


if __name__ == "__main__":
    sys.exit(guarded(main))
