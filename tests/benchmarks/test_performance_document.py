"""What docs/performance.md computes of a large run is computed from the code's own arrays and weights."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.policy import PolicyNet, snapshot
from actors.rollout import Rollout
from cluster.verbs.bench import CHECKOUT
from cluster.wiring import build_worker
from configs.checks import ConfigError
from configs.loading import load_config

DOCUMENT = Path(CHECKOUT, "docs", "performance.md").read_text()
NODES, WORKERS = 8, 64


@pytest.fixture(scope="module")
def played() -> tuple[Rollout, PolicyNet, int]:
    """A rollout of the reference network at the working point's T, the network, and the bytes of its weights."""
    config = load_config(overrides=["actors.envs_per_worker=4", "policy.reuse_crops=false", "policy.core_skip=false"])
    worker = build_worker(config, 0, incarnation="1-0", stream="test")
    try:
        net = PolicyNet(worker.env.spec, config.policy)
        packed = snapshot(net, (1, 0))
        return worker.collect(packed, None)[0], net, sum(array.nbytes for array in packed.weights.values())
    finally:
        worker.close()


def bytes_per_frame(rollout: Rollout) -> float:
    values = [getattr(rollout, field.name) for field in dataclasses.fields(rollout)]
    arrays = [
        array
        for value in values
        for array in (value.values() if isinstance(value, dict) else [value])
        if isinstance(array, np.ndarray)
    ]
    return sum(array.nbytes for array in arrays) / rollout.actions.size


def test_bytes_per_frame_and_of_a_version_are_those_of_the_code(played: tuple[Rollout, PolicyNet, int]) -> None:
    rollout, net, weight_bytes = played
    assert len(rollout.actions) == 32
    assert f"Rollouts: {bytes_per_frame(rollout):.1f} bytes per frame" in DOCUMENT
    assert f"{sum(weights.numel() for weights in net.state_dict().values()):,} · 4 = {weight_bytes:,} bytes" in DOCUMENT


def test_rates_follow_from_them(played: tuple[Rollout, PolicyNet, int]) -> None:
    rollout, _, weight_bytes = played
    for per_worker in (5_000, 10_000, 15_000):
        frames_per_s = WORKERS * per_worker
        rate = frames_per_s * bytes_per_frame(rollout)
        cells = (
            f"| {per_worker:,} | {frames_per_s:,} | {math.floor(frames_per_s / 4096)} | {rate / 1e6:.0f} MB/s"
            f" ({8 * rate / 1e9:.1f} Gbit/s) |"
        )
        assert cells in DOCUMENT
    frames_per_s = 640_000
    for together in (8, 16, 32, 64):
        per_frame = NODES * weight_bytes / (together * 4096)
        cells = (
            f"| {together} | {together * 4096:,} | {math.ceil(2 * WORKERS / together)} |"
            f" {frames_per_s / together / 4096:.1f} | {per_frame:,.0f} |"
        )
        assert f"{cells} {per_frame * frames_per_s / 1e6:,.0f} MB/s |" in DOCUMENT
    assert 18 < NODES * weight_bytes / 4096 / bytes_per_frame(rollout) < 19, "where weights and rollouts are equal"


def test_arithmetic_is_what_the_networks_layers_ask_for(played: tuple[Rollout, PolicyNet, int]) -> None:
    rollout, net, _ = played
    cells = math.prod(rollout.obs["glyph_crop"].shape[2:])
    products = sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, torch.nn.Linear))
    products += cells * sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, torch.nn.Conv2d))
    assert f"A forward pass is {2 * products / 1e6:.1f} MFLOP per frame" in DOCUMENT


def test_seven_rollouts_per_batch_are_the_least_for_64_workers() -> None:
    settings = ["cluster.mode=connect", "run_dir=/shared/run", f"actors.num_workers={WORKERS}"]
    load_config(overrides=[*settings, "learner.rollouts_per_batch=7"])
    with pytest.raises(ConfigError, match="in flight"):
        load_config(overrides=[*settings, "learner.rollouts_per_batch=6"])
