"""Frames/s per core of the policy's forward step on recorded NetHack games: float32, bf16, bf16 encoding what repeats
itself once.

All ways see the same observations (a stretch of games played with random actions, the first steps of each game left
out), step the same network through the worker's own inference, rollout by rollout, and take turns. Rates are frames per
second of processor time. The compiled way is `torch.compile` of the whole step; where there is no C++ compiler it is
left out.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.verbs.bench import print_report, report

FLOAT32, BF16, REUSE, COMPILED = "fp32", "bf16", "bf16, repeats encoded once", "bf16, compiled"
OPTIONS: Mapping[str, tuple[str, bool]] = {
    FLOAT32: ("fp32", False),
    BF16: ("bf16", False),
    REUSE: ("bf16", True),
    COMPILED: ("bf16", False),
}
"""Precision and `policy.reuse_crops` of each way."""
PRIMARY_BATCH = 128


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Record the games, run all windows in turns and report them."""
    import torch

    from actors.environments.factory import make_environment
    from actors.inference import BatchedInference
    from actors.policy import PolicyNet
    from configs.schema import ActorsConfig, EnvConfig, PolicyConfig

    torch.set_num_threads(arguments.torch_threads)
    batches, num_steps = sorted(set(arguments.batches)), arguments.rollout_steps
    num_recorded = arguments.repetitions * num_steps
    env = make_environment(EnvConfig(id=arguments.task), num_envs=batches[-1], run_seed=arguments.seed, worker_index=0)
    try:
        obs = _record(env, arguments.skipped_steps, num_recorded, arguments.seed)
    finally:
        env.close()
    ways = [way for way in OPTIONS if way != COMPILED or _has_compiler()]
    sides = {}
    for batch in batches:
        for way in ways:
            precision, reuse = OPTIONS[way]
            torch.manual_seed(arguments.seed)
            net = PolicyNet(env.spec, PolicyConfig(reuse_crops=reuse))
            if way == COMPILED:
                net.step = torch.compile(net.step, dynamic=False)  # type: ignore[method-assign]
            sides[way, batch] = BatchedInference(net, env.spec, batch, ActorsConfig(precision=precision))
    measured: dict[str, list[float]] = {f"{way}, batch {batch}": [] for way, batch in sides}
    for (_, batch), inference in sides.items():
        _window(inference, obs, slice(0, num_steps), batch)  # warm-up, compilation included
    for repetition in range(arguments.repetitions):
        for (way, batch), inference in sides.items():
            steps = slice(repetition * num_steps, (repetition + 1) * num_steps)
            rate = _window(inference, obs, steps, batch)
            measured[f"{way}, batch {batch}"].append(rate)
            print(
                f"repetition {repetition + 1}, {way}, batch {batch}: {rate:.0f} frames/s", file=sys.stderr, flush=True
            )
    primary = PRIMARY_BATCH if PRIMARY_BATCH in batches else batches[-1]
    return report(
        "inference",
        measured=measured,
        unit="frames/s",
        ratio_of=(f"{REUSE}, batch {primary}", f"{BF16}, batch {primary}"),
        settings={name: getattr(arguments, name) for name in SETTINGS} | {"policy": "defaults", "device": "cpu"},
        distinct_fraction={
            name: _distinct_fraction(obs[name][:, :primary], num_steps) for name in ("glyph_crop", "message")
        },
    )


def _record(env: Any, num_skipped: int, num_recorded: int, seed: int) -> dict[str, np.ndarray]:
    """Observations name -> [steps, B, ...] of random actions."""
    rng = np.random.default_rng(seed)
    obs, _ = env.reset()
    kept: dict[str, list[np.ndarray]] = {name: [] for name in obs}
    for step in range(num_skipped + num_recorded):
        if step >= num_skipped:
            for name, array in obs.items():
                kept[name].append(array.copy())
        obs = env.step(rng.integers(0, env.spec.num_actions, env.num_envs)).obs
    return {name: np.stack(arrays) for name, arrays in kept.items()}


def _window(inference: Any, obs: Mapping[str, np.ndarray], steps: slice, batch: int) -> float:
    """Frames per second of processor time over one rollout."""
    indices = range(steps.start, steps.stop)
    began = time.process_time()
    with inference.rollout(len(indices)):
        for t in indices:
            inference.step({name: array[t, :batch] for name, array in obs.items()})
    return len(indices) * batch / (time.process_time() - began)


def _distinct_fraction(array: np.ndarray, num_steps: int) -> float:
    """Share of a rollout's rows that are distinct, on average."""
    rollouts = array.reshape(-1, num_steps * array.shape[1], int(np.prod(array.shape[2:])))
    return float(np.mean([len(np.unique(rows, axis=0)) / len(rows) for rows in rollouts]))


def _has_compiler() -> bool:
    found = any(map(shutil.which, ("g++", "c++", "clang++")))
    if not found:
        print("no C++ compiler found: the compiled way is left out", file=sys.stderr)
    return found


SETTINGS = ("task", "batches", "rollout_steps", "skipped_steps", "torch_threads", "seed")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where the command is wrong."""
    parser = argparse.ArgumentParser(prog="delphi bench inference", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--task", default="NetHackScore-v0", help="whose observations (default: NetHackScore-v0)")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[64, 128],
        metavar="N",
        help="environments in a step (default: 64 128)",
    )
    parser.add_argument(
        "--repetitions", type=int, default=12, metavar="N", help="rollouts of each way and batch (default: 12)"
    )
    parser.add_argument("--rollout-steps", type=int, default=32, metavar="N", help="steps of a rollout (default: 32)")
    parser.add_argument(
        "--skipped-steps",
        type=int,
        default=500,
        metavar="N",
        help="of the games' beginnings, in which little happens (default: 500)",
    )
    parser.add_argument("--torch-threads", type=int, default=1, metavar="N", help="threads for torch (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of games, actions and weights (default: 0)")
    arguments = parser.parse_args(argv)
    for name in ("repetitions", "rollout_steps", "torch_threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, wanted at least 1")
    if arguments.skipped_steps < 0:
        parser.error(f"--skipped-steps: got {arguments.skipped_steps}, wanted at least 0")
    if min(arguments.batches) < 1:
        parser.error(f"--batches: got {min(arguments.batches)}, wanted at least 1")
    print_report(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
