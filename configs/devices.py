"""Where a network computes and in which numbers: what `device` settings name, and which number type is fast there.

What `auto` stands for is measured, not read from what a device says of itself.

Invariant: importing this imports nothing heavy. A device that a setting names is used or refused, never replaced by another; only `auto`
chooses. Measuring draws no random numbers and takes some milliseconds. A choice is float32 unless bfloat16 is clearly faster, so one near
the tie is the same in every process; and within a process it is made once.
"""

import functools
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)
CLEARLY_FASTER = 1.25
"""Emulated bfloat16 was measured at 0.07 to 0.23 of float32's speed, that of processors which multiply in it at 1.6 to 7 times."""
ROWS = {"cpu": 64, "cuda": 4096}
"""Of a layer's input: on a GPU so many that its launch counts little."""
LARGEST = 1024
"""Of a layer's inputs and outputs: larger ones say the same and take longer."""
PAIRS = 4


def resolve_device(name: str, setting: str) -> "torch.device":
    """The device that `name` stands for; `auto` is CUDA where there is a device.

    Raises ValueError, naming `setting`, for a name that is none and for a device that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"{setting}: got {name!r}, wanted auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{setting}: got {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices here; choose auto or cpu"
        )
    return device


@functools.cache
def bfloat16_speed(device: "torch.device", inputs: int, outputs: int) -> float:
    """How many times as fast as in float32 a linear layer of `inputs` x `outputs` is in bfloat16 on `device`."""
    import torch

    shape = min(outputs, LARGEST), min(inputs, LARGEST)
    weights = {dtype: torch.ones(shape, dtype=dtype, device=device) for dtype in (torch.float32, torch.bfloat16)}
    rows = {dtype: torch.ones(ROWS[device.type], shape[1], dtype=dtype, device=device) for dtype in weights}
    # Processor time of one thread: what else runs on the machine decides nothing, not even through threads that wait for each other.
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    threads = torch.get_num_threads()
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in weights}
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            for pair in range(1 + PAIRS):
                for dtype, weight in weights.items():
                    started = clock()
                    torch.nn.functional.linear(rows[dtype], weight)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    if pair:  # in the first, libraries choose their kernels
                        seconds[dtype].append(clock() - started)
    finally:
        torch.set_num_threads(threads)
    return max(min(seconds[torch.float32]), 1e-9) / max(min(seconds[torch.bfloat16]), 1e-9)


def bfloat16_is_faster(device: "torch.device", inputs: int, outputs: int, what: str) -> bool:
    """Whether bfloat16 is clearly faster than float32 in such a layer on `device`; the log says so of `what`."""
    speed = bfloat16_speed(device, inputs, outputs)
    is_faster = speed >= CLEARLY_FASTER
    chosen = "bfloat16" if is_faster else "float32"
    LOG.info(
        "%s computes in %s on %s: bfloat16 is %.2g times as fast in a layer of %d x %d",
        what,
        chosen,
        device,
        speed,
        inputs,
        outputs,
    )
    return is_faster
