import pytest
import torch

from actors.devices import resolve_device, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "cuda:99"])
def test_a_device_that_is_not_there_is_named_in_the_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"actors.device: got '{name}'"):
        resolve_device(name, "actors.device")


def test_auto_takes_cuda_where_there_is_a_device() -> None:
    assert resolve_device("auto", "actors.device").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_precision_names_decide_the_autocast_dtype() -> None:
    assert resolve_precision("bf16", CPU) is torch.bfloat16
    assert resolve_precision("fp32", CPU) is None
    assert resolve_precision("auto", CPU) in (torch.bfloat16, None)
    with pytest.raises(ValueError, match="fp16"):
        resolve_precision("fp16", CPU)
