"""Both forms of published weights arrive, and bf16 takes half the bytes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from cluster.verbs.bench import CHECKOUT
from configs.loading import load_config
from tests.benchmarks.publish import load_bf16, make_network, summarise, to_bf16


def test_weights_in_bf16_arrive_rounded_and_nothing_else() -> None:
    config = load_config(overrides=["policy.core_size=16", "policy.hidden_size=16"])
    sent, received = make_network(config), make_network(config)
    packed = to_bf16(sent)
    for array in packed.weights.values():
        array.flags.writeable = False  # as they come from the object store
    load_bf16(received, packed)
    for name, tensor in sent.state_dict().items():
        assert torch.equal(received.state_dict()[name], tensor.to(torch.bfloat16).float()), name
    assert any(not np.array_equal(tensor, received.state_dict()[name]) for name, tensor in sent.state_dict().items())


def test_the_ratio_is_of_whole_publications() -> None:
    taken = {"float32": {"put": [4.0, 5.0], "load": [2.0, 1.0]}, "bf16": {"put": [2.0, 2.0], "load": [1.0, 1.0]}}
    result = summarise(taken, {"float32": 8, "bf16": 4}, {})
    assert (result["medians"], result["ratio"]) == ({"float32": 6.0, "bf16": 3.0}, 2.0)
    assert result["ms"]["float32"] == {"put": 4.5, "load": 1.5}


@pytest.mark.timeout(120)
def test_the_benchmark_publishes_through_ray_to_another_process() -> None:
    command = [
        sys.executable,
        "-m",
        "cluster.verbs.bench",
        "publish",
        "--json",
        "--repetitions",
        "2",
        "policy.core_size=16",
    ]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["bytes"]["float32"] == 2 * result["bytes"]["bf16"] > 0
    assert all(ms > 0 for steps in result["ms"].values() for ms in steps.values())
    assert result["repetitions"] == 2
