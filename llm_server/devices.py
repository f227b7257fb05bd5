"""Where a language model computes, and in which numbers: what the settings `device` and `dtype` stand for on this machine.

Invariant: importing this imports nothing heavy; what a setting names is used or refused, never replaced: only `auto` chooses, and
it chooses float32 on every CPU, so that a caption gets the same label on each.

Whether a CPU multiplies in bf16 by itself decides speed only (57 labels/s against 24 on one core that does, 3 against 15 on one that
emulates it). But its rounding moves a probability by up to 0.014 with the other texts of the pass, where float32 moves it by 1e-5.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "bfloat16", "float32")


def resolve_device(name: str) -> "torch.device":
    """The device that `ServiceConfig.device` names; ValueError where this machine has none such."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device '{name}': use cpu, cuda, cuda:N or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device '{name}' was asked for but this machine has {torch.cuda.device_count()} CUDA devices: use auto or cpu")
    return device


def resolve_dtype(name: str, *, on_cpu: bool) -> str:
    """`bfloat16` or `float32`: what `ServiceConfig.dtype` names; for `auto` float32 on a CPU and on a GPU that only emulates bf16."""
    if name != "auto":
        return name
    return "float32" if on_cpu or not _gpu_computes_in_bf16() else "bfloat16"


def _gpu_computes_in_bf16() -> bool:
    import torch

    # No GPU seen from here: one of a process with another torch, which is asked for what all of today's compute in.
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
