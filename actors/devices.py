"""In which numbers a network computes (`precision`), and how many prepared kernels its libraries keep."""

import os

import torch

from configs.devices import bfloat16_is_faster

CACHE_SIZES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""Variables that say how many torch keeps, and oneDNN below it; by default 1024 each."""


def resolve_precision(precision: str, device: torch.device, net: torch.nn.Module, what: str) -> torch.dtype | None:
    """The autocast dtype for `bf16`, `fp32` or `auto` (bf16 where it makes the largest layer of `net` clearly faster on `device`, which
    the log then says of `what`); None is float32, no autocast."""
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision: got {precision!r}, wanted one of auto, bf16, fp32")
    wants_bf16 = precision == "bf16" or (precision == "auto" and bfloat16_is_faster(device, *_largest_layer(net), what))
    return torch.bfloat16 if wants_bf16 else None


def _largest_layer(net: torch.nn.Module) -> tuple[int, int]:
    """Inputs and outputs of the largest matrix that vectors are multiplied by; a table of embeddings only looks up."""
    tables = {id(module.weight) for module in net.modules() if isinstance(module, torch.nn.Embedding)}
    matrices = [weights.shape for weights in net.parameters() if weights.dim() == 2 and id(weights) not in tables]
    outputs, inputs = max(matrices, key=lambda shape: shape.numel(), default=(256, 256))
    return inputs, outputs


def bound_kept_kernels(number: int) -> None:
    """Let libraries keep what they prepared for the newest `number` of operations and shapes, not for every number of rows that a CPU ever
    meets. To be called before this process first computes; what the user has set stays."""
    for name in CACHE_SIZES:
        os.environ.setdefault(name, str(number))
