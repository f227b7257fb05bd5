"""What noise correction and an ensemble are worth where a share of the labels is flipped: AUC of the classification
reward model on captions with clean labels.

Trained on the 802 messages of nethack_messages_dev.jsonl with labels 0 and 1, a share of them flipped (other ones for
every seed), until early stopping, by answers that are flipped too, ends it. Tested on the 282 messages of
nethack_messages_held_out.jsonl, none of which is among them.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.verbs.bench import print_report, report

DATA = Path(__file__).parents[1] / "llm_server" / "data"
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "noise_rate": {"noise_rate": True},
    "ensemble": {"ensemble": 5},
    "ensemble, pessimism 1": {"ensemble": 5, "pessimism": 1.0},
    "both": {"noise_rate": True, "ensemble": 5},
    "both, pessimism 1": {"noise_rate": True, "ensemble": 5, "pessimism": 1.0},
    "clean labels": {"clean": True},
}
"""The two with pessimism read the rewards of the same networks as the ones above them."""
MAX_TURNS = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(prog="delphi bench label_noise", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each kind (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--flipped", type=float, default=0.2, help="share of flipped labels (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1 or not 0 <= arguments.flipped < 0.5:
        raise ValueError("--seeds must be at least 1, --flipped in [0, 0.5)")
    measured: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for arm, auc in _aucs(seed, arguments.flipped).items():
            measured[arm].append(auc)
        print(f"seed {seed}: " + ", ".join(f"{arm} {aucs[-1]:.3f}" for arm, aucs in measured.items()), file=sys.stderr)
    differences = {arm: difference(np.array(aucs), np.array(measured["plain"])) for arm, aucs in measured.items()}
    settings = {"flipped": arguments.flipped, "first_seed": arguments.first_seed}
    result = report(
        "label_noise",
        measured=measured,
        unit="AUC",
        ratio_of=("noise_rate", "plain"),
        settings=settings,
        values=measured,
        means={arm: float(np.mean(aucs)) for arm, aucs in measured.items()},
        differences=differences,
    )
    print_report(result, arguments.json)
    if not arguments.json:
        for arm, (mean, low, high) in differences.items():
            print(f"{arm} minus plain: {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    return 0


def difference(aucs: np.ndarray, plain: np.ndarray) -> tuple[float, float, float]:
    """The mean of `aucs` [S] minus that of `plain` [S], of the same seeds, with its 95 % bootstrap interval."""
    paired = aucs - plain
    resampled = np.random.default_rng(0).choice(paired, (2000, len(paired))).mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(paired.mean()), float(low), float(high)


def _aucs(seed: int, flipped: float) -> dict[str, float]:
    """Of every arm, with the flips and the first weights of `seed`."""
    import torch

    from llm_server.offline.audit_metrics import auc
    from llm_server.offline.caption_file import read_labelled
    from llm_server.offline.judgement_file import caption_of

    torch.set_num_threads(1)
    train, test = (read_labelled(str(DATA / f"nethack_messages_{part}.jsonl")) for part in ("dev", "held_out"))
    clean = np.array([row.is_positive for row in train])
    noisy = clean ^ (np.random.default_rng(seed).random(len(clean)) < flipped)
    captions = [caption_of(row.text) for row in train]
    asked, wanted = [caption_of(row.text) for row in test], np.array([row.is_positive for row in test])
    found: dict[str, float] = {}
    outputs: dict[tuple[Any, ...], np.ndarray] = {}  # [K, N] by how the networks were trained
    for arm, settings in ARMS.items():
        noise_rate, ensemble = flipped * settings.get("noise_rate", False), settings.get("ensemble", 1)
        is_clean = settings.get("clean", False)
        how = noise_rate, ensemble, is_clean
        if how not in outputs:
            outputs[how] = _trained(seed, captions, clean if is_clean else noisy, noise_rate, ensemble, asked)
        values = outputs[how]
        found[arm] = auc(values.mean(axis=0) - settings.get("pessimism", 0.0) * values.std(axis=0), wanted)
    return found


def _trained(
    seed: int, captions: Sequence[Any], labels: np.ndarray, noise_rate: float, ensemble: int, asked: Sequence[Any]
) -> np.ndarray:
    """Log-odds [K, N] of the captions `asked`."""
    from configs.annotation_schema import RewardModelConfig
    from configs.reward_schema import RobustConfig
    from llm_server.annotation import JudgedCaption, Judgement, Status
    from reward_models.classification import ClassificationModel

    began = time.process_time()
    config = RewardModelConfig(name="classification", steps_per_turn=25, batch_size=16, patience=5)
    model = ClassificationModel(config, seed, RobustConfig(noise_rate=noise_rate, ensemble=ensemble))
    model.calibrate(0.5)
    judged = [Judgement(status=Status.OK, probability=float(label), answer_mass=1.0) for label in labels]
    order = np.random.default_rng(seed).permutation(len(judged))  # the first 200 are not held out
    model.learn([JudgedCaption(caption=captions[row], judgement=judged[row]) for row in order])
    for _ in range(MAX_TURNS * ensemble):
        if model.is_settled:
            break
        model.train()
    steps = [member.step for member in model._networks.members]
    print(f"    {steps} steps, {time.process_time() - began:.1f} s of processor time", file=sys.stderr)
    return model._networks.outputs(asked)


if __name__ == "__main__":
    sys.exit(main())
