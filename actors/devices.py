"""Inference and training precision, and the size of the kernel caches of torch's libraries."""

import os

import torch

from configs.devices import bfloat16_is_faster

CACHE_SIZES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""Environment variables with the cache sizes of torch and of oneDNN; both default to 1024."""


def resolve_precision(precision: str, device: torch.device, net: torch.nn.Module, what: str) -> torch.dtype | None:
    """The autocast dtype for `bf16`, `fp32` or `auto`; None is float32 without autocast. `auto` is bf16 if the largest
    layer of `net` is clearly faster with it on `device`, which is logged for `what`."""
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision: got {precision!r}, wanted one of auto, bf16, fp32")
    wants_bf16 = precision == "bf16" or (precision == "auto" and bfloat16_is_faster(device, *_largest_layer(net), what))
    return torch.bfloat16 if wants_bf16 else None


def _largest_layer(net: torch.nn.Module) -> tuple[int, int]:
    """Inputs and outputs of the largest weight matrix; embedding tables do not count, as they are only looked up."""
    tables = {id(module.weight) for module in net.modules() if isinstance(module, torch.nn.Embedding)}
    matrices = [weights.shape for weights in net.parameters() if weights.dim() == 2 and id(weights) not in tables]
    outputs, inputs = max(matrices, key=lambda shape: shape.numel(), default=(256, 256))
    return inputs, outputs


def bound_kept_kernels(number: int) -> None:
    """Limit the kernel caches to the newest `number` of operations and shapes, instead of every number of rows that a
    CPU ever meets. Call it before the process first computes; values set by the user are kept."""
    for name in CACHE_SIZES:
        os.environ.setdefault(name, str(number))
