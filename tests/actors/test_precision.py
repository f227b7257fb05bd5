"""`precision: auto` selects by measured speed, never by the processor's description."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from actors.policy import resolve_precision
from configs import devices as number_types

CPU = torch.device("cpu")
NET = torch.nn.Sequential(
    torch.nn.Embedding(6000, 32), torch.nn.Linear(40, 20), torch.nn.Linear(20, 70), torch.nn.LSTM(10, 30)
)


def test_precision_names_decide_the_autocast_dtype() -> None:
    assert resolve_precision("bf16", CPU, NET, "it") is torch.bfloat16
    assert resolve_precision("fp32", CPU, NET, "it") is None
    with pytest.raises(ValueError, match="fp16"):
        resolve_precision("fp16", CPU, NET, "it")


@pytest.mark.parametrize(
    ("speed", "wanted"),
    [(4.0, torch.bfloat16), (1.3, torch.bfloat16), (1.2, None), (1.0, None), (0.1, None)],
    ids=["much faster", "clearly faster", "near the tie", "as fast", "emulated"],
)
def test_auto_is_bf16_where_that_is_clearly_faster_in_the_largest_layer(
    monkeypatch, caplog, speed: float, wanted: object
) -> None:
    asked: list[tuple[int, int]] = []

    def measured(device: torch.device, inputs: int, outputs: int) -> float:
        asked.append((inputs, outputs))
        return speed

    monkeypatch.setattr(number_types, "bfloat16_speed", measured)
    with caplog.at_level(logging.INFO):
        assert resolve_precision("auto", CPU, NET, "the policy") is wanted
    assert asked == [(30, 120)], "the LSTM's recurrent one; the embeddings only look up"
    chosen = "float32" if wanted is None else "bfloat16"
    assert (
        f"the policy computes in {chosen} on cpu: bfloat16 is {speed:.2g} times as fast in a layer of 30 x 120"
        in caplog.text
    )


def test_measuring_draws_no_random_numbers_and_is_done_once() -> None:
    before = torch.random.get_rng_state()
    first = number_types.bfloat16_speed(CPU, 96, 160)
    assert first == number_types.bfloat16_speed(CPU, 96, 160) > 0
    assert torch.equal(before, torch.random.get_rng_state())


MEASURE = """
import torch
from configs.devices import bfloat16_speed
capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
print(bfloat16_speed(torch.device("cpu"), 512, 1024), capabilities)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is what is told to do without bf16")
def test_a_processor_that_emulates_bf16_is_known_whatever_it_says_of_itself() -> None:
    older = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    said = subprocess.run(
        [sys.executable, "-c", MEASURE], env=os.environ | older, capture_output=True, text=True, check=True
    ).stdout
    assert float(said.split()[0]) < 1.0
