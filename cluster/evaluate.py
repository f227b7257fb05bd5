"""`delphi eval`: plays a run's latest checkpoint on held-out seeds beside a random policy.

Invariant: the seeds are of the stream `eval`, which training never uses, and both players meet the same ones.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from configs.validation import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 the command or the run was wrong."""
    parser = argparse.ArgumentParser(
        prog="delphi eval", description="Play a run's latest checkpoint on held-out seeds, beside a random policy on the same seeds."
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--episodes", type=int, default=64, metavar="N", help="episodes per player (default 64)")
    parser.add_argument("--envs", type=int, default=16, metavar="N", help="environments played side by side (default 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which held-out seeds (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args(argv)
    from learner.checkpoint import CheckpointError

    try:
        for name, least in (("episodes", 1), ("envs", 1), ("seed", 0)):
            if getattr(arguments, name) < least:
                raise ConfigError(f"--{name}: got {getattr(arguments, name)}, wanted at least {least}")
        report = evaluate(arguments.run, episodes=arguments.episodes, num_envs=arguments.envs, seed=arguments.seed)
    except (ValueError, CheckpointError) as error:
        print(f"delphi eval: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report))
    else:
        _print_table(report)
    return 0


def evaluate(run_dir: str, *, episodes: int, num_envs: int, seed: int) -> dict[str, Any]:
    """Figures of the policy and of a random one as JSON values: each a mean with its 95 % interval. Raises ConfigError."""
    import torch

    from actors.environment import make_environment
    from actors.policy import PolicyNet
    from cluster.run_directory import find_run
    from configs.loading import from_dict
    from learner.checkpoint import load_latest
    from learner.evaluation import PolicyPlayer, RandomPlayer, play, summarise

    run, saved = find_run(run_dir)
    config = from_dict(saved)
    state = load_latest(run.checkpoints)
    if state is None:
        raise ConfigError(f"{run_dir} has no complete checkpoint yet; train it for a while, or stop it with Ctrl-C, which writes one")
    num_envs = min(num_envs, episodes)
    episodes_per_env = -(-episodes // num_envs)
    report: dict[str, Any] = {
        "run": str(run.path),
        "env_steps": state["loop"]["env_steps"],
        "environment": config.env.id,
        "episodes": num_envs * episodes_per_env,
        "seed": seed,
    }
    for name in ("policy", "random"):
        env = make_environment(
            config.env,
            num_envs=num_envs,
            run_seed=seed,
            worker_index=0,
            stream="eval",
            policy=config.policy,
        )
        try:
            if name == "policy":
                net = PolicyNet(env.spec, config.policy)
                net.load_state_dict({key: torch.as_tensor(array) for key, array in state["learner"]["weights"].items()})
                player: PolicyPlayer | RandomPlayer = PolicyPlayer(net, num_envs, seed)
            else:
                player = RandomPlayer(env.spec.num_actions, num_envs, seed)
            print(f"playing {report['episodes']} episodes: {name}", file=sys.stderr, flush=True)
            figures = summarise(play(env, player, episodes_per_env))
        finally:
            env.close()
        report[name] = {figure: asdict(estimate) for figure, estimate in figures.items()}
    return report


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{report['environment']}, {report['episodes']} episodes, checkpoint at {report['env_steps']:,} steps (mean, 95 % interval)"
    )
    for heading in ("", "policy", "random"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in report["policy"]:
        cells = [report[player].get(name) for player in ("policy", "random")]
        table.add_row(name, *("-" if c is None else f"{c['mean']:.2f}  [{c['low']:.2f}, {c['high']:.2f}]" for c in cells))
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    sys.exit(main())
