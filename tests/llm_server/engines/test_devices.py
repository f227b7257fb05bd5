"""How the settings `device` and `dtype` of a service are resolved."""

import logging
from types import SimpleNamespace

import pytest
import torch

from configs import devices as number_types
from llm_server.engines import devices
from llm_server.engines.devices import layer_of, resolve_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LAYER = (576, 1536)


@pytest.mark.parametrize("speed", [0.1, 1.0, 7.0])
def test_every_cpu_computes_in_float32_unless_told_otherwise_and_the_log_says_what_bf16_would_give(
    monkeypatch, caplog, speed
) -> None:
    monkeypatch.setattr(devices, "bfloat16_speed", lambda device, inputs, outputs: speed)
    with caplog.at_level(logging.INFO):
        assert resolve_dtype("auto", CPU, LAYER) == "float32"
    assert f"is {speed:.2g} times as fast in a layer of 576 x 1536" in caplog.text
    assert resolve_dtype("bfloat16", CPU, LAYER) == "bfloat16"


@pytest.mark.parametrize(("speed", "wanted"), [(12.0, "bfloat16"), (1.1, "float32"), (0.4, "float32")])
def test_a_gpu_computes_in_what_is_measured_to_be_fast_there(monkeypatch, speed, wanted) -> None:
    monkeypatch.setattr(number_types, "bfloat16_speed", lambda device, inputs, outputs: speed)
    assert resolve_dtype("auto", GPU, LAYER) == wanted
    assert resolve_dtype("float32", GPU, LAYER) == "float32"


@pytest.mark.parametrize(
    ("seen", "native", "wanted"), [(True, True, "bfloat16"), (True, False, "float32"), (False, False, "bfloat16")]
)
def test_a_gpu_of_another_process_is_queried(monkeypatch, seen: bool, native: bool, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert resolve_dtype("auto", None, LAYER) == wanted


def test_a_models_layer_is_what_its_configuration_says() -> None:
    assert layer_of(SimpleNamespace(hidden_size=576, intermediate_size=1536)) == (576, 1536)
    assert layer_of(SimpleNamespace(hidden_size=64)) == (64, 256)
    assert layer_of(SimpleNamespace(hidden_size=64, intermediate_size=[128, 256])) == (64, 256), (
        "some have one for each layer"
    )
