"""In which numbers a language model computes: what `service.dtype` stands for on this machine.

Invariant: importing this imports nothing heavy. `auto` is float32 on every CPU, so that a caption gets the same label
on each, and on a GPU the dtype that is measured to be fast there.

bfloat16 on a CPU changes speed (57 labels/s against 24 on a core with native bf16, 3 against 15 on one that emulates
it; the log states it) and accuracy: its rounding moves a probability by up to 0.014 with the other texts of the batch,
where float32 moves it by 1e-5.
"""

import logging
from typing import TYPE_CHECKING, Any

from configs.devices import bfloat16_is_faster, bfloat16_speed

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)


def resolve_dtype(name: str, device: "torch.device | None", layer: tuple[int, int]) -> str:
    """`bfloat16` or `float32` for `ServiceConfig.dtype`. `auto` is float32 on a CPU, and on a GPU unless bfloat16 is
    clearly faster in a layer of that many inputs and outputs. Device None is a GPU of another process: measuring would
    take memory on it, so only its capabilities are queried."""
    if name != "auto":
        return name
    if device is None:
        import torch

        # A GPU that this torch cannot see belongs to a process with another torch; all current ones compute in bf16.
        has_bf16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has_bf16 else "float32"
    if device.type != "cpu":
        return "bfloat16" if bfloat16_is_faster(device, *layer, "the judge") else "float32"
    LOG.info(
        "the judge computes in float32, as on every CPU; bfloat16 (service.dtype=bfloat16) is %.2g times as fast in a"
        " layer of %d x %d, but then labels depend on the batch",
        bfloat16_speed(device, *layer),
        *layer,
    )
    return "float32"


def layer_of(settings: Any) -> tuple[int, int]:
    """Inputs and outputs of a model's usual linear layer, from its Hugging Face configuration."""
    hidden, inner = getattr(settings, "hidden_size", None), getattr(settings, "intermediate_size", None)
    hidden = hidden if isinstance(hidden, int) else 1024
    return hidden, inner if isinstance(inner, int) else 4 * hidden
