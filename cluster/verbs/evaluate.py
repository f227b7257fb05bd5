"""`delphi eval`: plays a run's latest checkpoint on held-out seeds beside a blind player and a random one.

Invariant: the seeds are of the stream `eval`, which training never uses, and all players meet the same games.
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
from configs.schema import RunConfig
from llm_server.standard_output import guarded

if TYPE_CHECKING:  # --help must not load torch
    from learner.evaluation import Episodes, Estimate, Player

PLAYERS = ("policy", "blind", "random")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 an invalid command or run."""
    parser = argparse.ArgumentParser(
        prog="delphi eval",
        description="Play a run's latest checkpoint on held-out seeds; beside it on the same seeds a blind player,"
        " which draws from the policy's average action frequencies without looking, and a random one.",
    )
    parser.add_argument("run", type=path_argument, metavar="RUN", help="a run directory")
    parser.add_argument("--episodes", type=int, default=64, metavar="N", help="episodes per player (default 64)")
    envs = "environments played side by side (default 16)"
    parser.add_argument("--envs", type=int, default=16, metavar="N", help=envs)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which held-out seeds (default 0)")
    seconds = "play in rounds of one episode per environment, and count those that all three players finish in S"
    seconds += " seconds (default: no limit)"
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help=seconds)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args(argv)
    from learner.checkpoint import CheckpointError

    try:
        for name, least in (("episodes", 1), ("envs", 1), ("seed", 0)):
            if getattr(arguments, name) < least:
                raise ConfigError(f"--{name}: got {getattr(arguments, name)}, wanted at least {least}")
        if not 0 <= arguments.seconds < math.inf:
            raise ConfigError(f"--seconds: got {arguments.seconds:g}, wanted a number from 0 on")
        sizes = {"episodes": arguments.episodes, "num_envs": arguments.envs}
        report = evaluate(arguments.run, **sizes, seed=arguments.seed, seconds=arguments.seconds)
    except (ValueError, CheckpointError) as error:
        print(f"delphi eval: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report))
    else:
        _print_table(report)
    return 0


def evaluate(
    run_dir: str,
    *,
    episodes: int,
    num_envs: int,
    seed: int,
    seconds: float = 0.0,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Metrics of the three players and their differences as JSON values: each a mean with its 95 % interval.

    With `seconds` it plays in rounds, one episode per environment and player: the first with `num_envs` environments,
    each further one with as many as are likely to end in time. A round that does not end in time is left out for all
    players. Raises ConfigError.
    """
    import torch

    from cluster.run.directory import find_run
    from configs.loading import from_dict
    from learner.checkpoint import load_latest
    from learner.evaluation import OutOfTime, differences, summarise

    deadline = time.monotonic() + seconds if seconds else math.inf
    run, saved = find_run(run_dir)
    config = from_dict(saved)
    state = load_latest(run.checkpoints, parts=("learner", "loop"))
    if state is None:
        advice = "train it for a while, or stop it with Ctrl-C, which writes one"
        raise ConfigError(f"{run_dir} has no complete checkpoint yet; {advice}")
    num_envs = min(num_envs, episodes)
    per_env = 1 if seconds else -(-episodes // num_envs)
    played: dict[str, Episodes] = {name: {} for name in PLAYERS}
    information: list[float] = []
    # Also the number of a round's first environment: several rounds play one episode per environment each.
    num_played = 0
    weights, is_time_up = state["learner"]["weights"], lambda: time.monotonic() > deadline
    with contextlib.ExitStack() as at_end:
        at_end.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.actors.torch_threads)  # more do not help such small batches, and slow the machine
        while num_envs > 0:
            began, number = time.monotonic(), len(information)
            try:
                games, of_round = _play_round(config, weights, num_envs, per_env, seed, number, is_time_up, say)
            except OutOfTime:
                break
            information.append(of_round)
            for name, finished in games.items():
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
        "run": str(run.path),
        "env_steps": state["loop"]["env_steps"],
        "environment": config.env.id,
        "episodes": num_played,
        "episodes_lost": {name: num_played - len(games) for name, games in played.items()},
        "seed": seed,
        "policy_state_information": sum(information) / len(information),
        **{name: _as_json(summarise(games)) for name, games in played.items()},
        "differences": {f"{one} - {two}": _as_json(differences(played[one], played[two])) for one, two in pairs},
    }


def _play_round(
    config: RunConfig,
    weights: Mapping[str, Any],
    num_envs: int,
    episodes_per_env: int,
    seed: int,
    number: int,
    is_time_up: Callable[[], bool],
    say: Callable[[str], None],
) -> tuple[dict[str, "Episodes"], float]:
    """Each player's episodes of round `number`, and the policy's information between state and action, in nats. The
    blind player has the policy's action frequencies of this round. Raises OutOfTime."""
    from actors.environments.factory import make_environment
    from actors.policy import PolicyNet, load_weights
    from learner.evaluation import BlindPlayer, PolicyPlayer, RandomPlayer, play

    make = partial(make_environment, config.env, policy=config.policy)
    played: dict[str, Episodes] = {}
    for name in PLAYERS:
        with contextlib.closing(make(num_envs=num_envs, run_seed=seed, worker_index=number, stream="eval")) as env:
            player: Player
            if name == "policy":
                net = PolicyNet(env.spec, config.policy)
                try:
                    load_weights(net, weights)
                except RuntimeError as error:
                    raise ConfigError(
                        f"the checkpoint's policy does not fit {config.env.id} and config.json as they are here"
                        f" ({one_line(error, 300)}); take the versions that it was trained with (provenance.json)"
                    ) from None
                player = policy = PolicyPlayer(net, num_envs, seed + number)
            elif name == "blind":
                player = BlindPlayer(policy.frequencies, num_envs, seed + number)
            else:
                player = RandomPlayer(env.spec.num_actions, num_envs, seed + number)
            say(f"playing {num_envs * episodes_per_env} episodes: {name}")
            played[name] = play(env, player, episodes_per_env, is_time_up)
            if not played[name]:
                first = env.take_errors()[1].strip().splitlines()[-1]
                raise ConfigError(f"{config.env.id} raised in every episode, the first time: {first}")
    return played, policy.state_information


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
