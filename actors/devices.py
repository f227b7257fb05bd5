"""Where a network computes, and in which numbers: what the settings `device` and `precision` stand for on this machine.

Invariant: a device that a setting names is used or refused, never replaced by another; only `auto` chooses.
"""

import os

import torch

CACHE_SIZES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""Variables that say how many torch keeps, and oneDNN below it; by default 1024 each."""


def resolve_device(name: str, setting: str) -> torch.device:
    """The device that `name` stands for; `auto` is CUDA where there is a device.

    Raises ValueError, naming `setting`, for a name that is none and for a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"{setting}: got {name!r}, wanted auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{setting}: got {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices here; choose auto or cpu")
    return device


def resolve_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype for `bf16`, `fp32` or `auto` (bf16 where the device computes in it); None is float32, no autocast."""
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision: got {precision!r}, wanted one of auto, bf16, fp32")
    wants_bf16 = precision == "bf16" or (precision == "auto" and _computes_in_bf16(device))
    return torch.bfloat16 if wants_bf16 else None


def bound_kept_kernels(number: int) -> None:
    """Let libraries keep what they prepared for the newest `number` of operations and shapes, not for every number of rows that a CPU ever
    meets. To be called before this process first computes; what the user has set stays."""
    for name in CACHE_SIZES:
        os.environ.setdefault(name, str(number))


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Elsewhere torch emulates bf16 products, which is slower than float32.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))
