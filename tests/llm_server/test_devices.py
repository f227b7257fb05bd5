"""What the settings `device` and `dtype` of a service stand for."""

import pytest
import torch

from llm_server.devices import resolve_dtype


def test_every_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert resolve_dtype("auto", on_cpu=True) == "float32"
    assert resolve_dtype("bfloat16", on_cpu=True) == "bfloat16"


@pytest.mark.parametrize(("seen", "native", "wanted"), [(True, True, "bfloat16"), (True, False, "float32"), (False, False, "bfloat16")])
def test_a_gpu_computes_in_bfloat16_unless_it_would_emulate_it(monkeypatch, seen: bool, native: bool, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert resolve_dtype("auto", on_cpu=False) == wanted
    assert resolve_dtype("float32", on_cpu=False) == "float32"
