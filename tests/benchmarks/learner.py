"""Frames/s of the learner's update on rollouts of real NetHack games: as used, without re-using repeated crops, in
float32.

One worker plays the games with the policy at its first weights; then learners of the same first weights take turns,
update by update, over the same rollouts: rewards, joining, training and all. On a CPU rates are frames per second of
processor time, on a GPU of time.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.verbs.bench import print_report, report

AS_USED, WITHOUT_REUSE, FLOAT32, FLOAT32_WITHOUT_REUSE = (
    "as used",
    "without re-use",
    "float32",
    "float32, without re-use",
)
CHANGES: Mapping[str, tuple[str, ...]] = {
    AS_USED: (),
    WITHOUT_REUSE: ("policy.reuse_crops=false",),
    FLOAT32: ("learner.precision=fp32",),
    FLOAT32_WITHOUT_REUSE: ("policy.reuse_crops=false", "learner.precision=fp32"),
}
"""Settings in which each side differs from the first."""
KNOWN_CAPTIONS = 1_000_000
"""In the reward table, beside those of the rollouts."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Collect the rollouts, run all updates in turns and report them. ValueError for a device that is not there."""
    import torch

    from cluster.wiring import build_worker
    from configs.loading import load_config
    from learner.update import Learner

    torch.set_num_threads(arguments.torch_threads)
    settings = [
        f"env.id={arguments.task}",
        f"actors.envs_per_worker={arguments.envs}",
        f"actors.rollout_steps={arguments.rollout_steps}",
        f"learner.device={arguments.device}",
        f"seed={arguments.seed}",
    ]
    worker = build_worker(load_config(overrides=settings), 0, incarnation="0", stream="train")
    try:
        learners = {}
        for side, changes in CHANGES.items():
            config = load_config(overrides=[*settings, *changes])
            learners[side] = Learner(
                worker.env.spec, config.policy, config.learner, config.reward, run_epoch=0, seed=arguments.seed
            )
        weights = learners[AS_USED].snapshot()
        rollouts = [worker.collect(weights, None)[0] for _ in range(arguments.skipped_rollouts + arguments.rollouts)]
    finally:
        worker.close()
    rollouts = rollouts[arguments.skipped_rollouts :]
    reward = _reward(rollouts, arguments.seed)
    on_gpu = learners[AS_USED].device.type == "cuda"
    rates: dict[str, list[float]] = {side: [] for side in learners}
    shares: dict[str, list[float]] = {"relabel": [], "transfer": [], "train": []}
    for update in range(-arguments.warm_up, arguments.updates):
        for side, learner in learners.items():
            rollout = dataclasses.replace(rollouts[update % len(rollouts)], policy_version=learner.policy_version)
            timings, seconds = _update(learner, rollout, reward, on_gpu)
            if update >= 0:
                rates[side].append(rollout.num_steps / seconds)
            if update >= 0 and side == AS_USED:
                for stage, spent in timings.items():
                    shares[stage].append(spent / sum(timings.values()))
        if update >= 0:
            print(
                f"update {update + 1}: {', '.join(f'{side} {values[-1]:.0f}' for side, values in rates.items())}",
                file=sys.stderr,
            )
    return report(
        "learner",
        measured=rates,
        unit="frames/s",
        ratio_of=(AS_USED, FLOAT32_WITHOUT_REUSE),
        settings={name: getattr(arguments, name) for name in SETTINGS}
        | {"policy": "defaults", "known_captions": KNOWN_CAPTIONS},
        time="elapsed" if on_gpu else "of the processor",
        us_per_frame={side: 1e6 / statistics.median(values) for side, values in rates.items()},
        stage_shares={stage: statistics.median(values) for stage, values in shares.items()},
        distinct_fraction={name: _distinct_fraction(rollouts, name) for name in ("glyph_crop", "blstats", "message")},
    )


def _reward(rollouts: Sequence[Any], seed: int) -> Any:
    """Random rewards for the rollouts' captions and many others."""
    from reward_models.published import PublishedReward
    from reward_models.table import RewardTable

    rng = np.random.default_rng(seed)
    others = rng.integers(1, 2**63, KNOWN_CAPTIONS, dtype=np.uint64)
    ids = np.unique(np.concatenate([others, *[rollout.caption_ids.ravel() for rollout in rollouts]]))
    return PublishedReward.of(RewardTable.build(ids, rng.random(len(ids)), (0, 1)))


def _update(learner: Any, rollout: Any, reward: Any, on_gpu: bool) -> tuple[dict[str, float], float]:
    """Seconds by stage, and in all."""
    now = time.perf_counter if on_gpu else time.process_time
    began = now()
    timings = learner.step([rollout], reward).timings
    return timings, now() - began


def _distinct_fraction(rollouts: Sequence[Any], name: str) -> float:
    """Share of a rollout's rows that are distinct, on average."""
    batches = [rollout.obs[name].reshape(-1, int(np.prod(rollout.obs[name].shape[2:]))) for rollout in rollouts]
    return float(np.mean([len(np.unique(rows, axis=0)) / len(rows) for rows in batches]))


SETTINGS = (
    "task",
    "envs",
    "rollout_steps",
    "rollouts",
    "skipped_rollouts",
    "updates",
    "warm_up",
    "device",
    "torch_threads",
    "seed",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where the command is wrong."""
    parser = argparse.ArgumentParser(prog="delphi bench learner", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--task", default="NetHackScore-v0", help="whose games (default: NetHackScore-v0)")
    parser.add_argument("--envs", type=int, default=128, metavar="N", help="environments of a rollout (default: 128)")
    parser.add_argument("--rollout-steps", type=int, default=32, metavar="N", help="steps of a rollout (default: 32)")
    parser.add_argument(
        "--rollouts", type=int, default=6, metavar="N", help="rollouts that updates go round (default: 6)"
    )
    parser.add_argument(
        "--skipped-rollouts", type=int, default=30, metavar="N", help="of the games' beginnings (default: 30)"
    )
    parser.add_argument("--updates", type=int, default=15, metavar="N", help="updates of each side (default: 15)")
    parser.add_argument("--warm-up", type=int, default=3, metavar="N", help="updates before those (default: 3)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N or auto")
    parser.add_argument("--torch-threads", type=int, default=1, metavar="N", help="threads for torch (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of games, weights and rewards (default: 0)")
    arguments = parser.parse_args(argv)
    for name in ("envs", "rollout_steps", "rollouts", "updates", "torch_threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, wanted at least 1")
    for name in ("skipped_rollouts", "warm_up"):
        if getattr(arguments, name) < 0:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, wanted at least 0")
    print_report(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
