"""One run of a sweep in a process of its own: trains, then evaluates on held-out seeds into the run's evaluation.json.

Invariant: whatever ends it, the same call goes on from the run's last checkpoint; a run that is done is not run again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

STOPPED = 3
"""The exit code of a run that was asked to stop before its end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, `STOPPED`, or that of the training or of the evaluation."""
    parser = argparse.ArgumentParser(prog="python -m cluster.sweep.trial", description=__doc__)
    parser.add_argument("config", help="the run's configuration, a file for `delphi train --config`")
    parser.add_argument("--episodes", type=int, required=True, help="held-out episodes per player")
    parser.add_argument("--envs", type=int, required=True, help="environments of the evaluation")
    parser.add_argument("--player", default="", help="evaluate this player alone")
    arguments = parser.parse_args(argv)
    from cluster import train
    from cluster.run.directory import write_atomically
    from cluster.sweep.results import is_trained
    from cluster.verbs.evaluate import evaluate
    from configs.loading import load_config

    config = load_config(file=arguments.config)
    run_dir = Path(config.run_dir)
    if not is_trained(run_dir, config):
        if code := train.main(["--config", arguments.config]):
            return code
        if not is_trained(run_dir, config):
            return STOPPED
    players = [arguments.player] if arguments.player else None
    sizes = {"episodes": arguments.episodes, "num_envs": arguments.envs}
    report = evaluate(str(run_dir), **sizes, seed=0, players=players)
    write_atomically(run_dir / "evaluation.json", json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
