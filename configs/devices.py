"""Resolves `device` settings, and measures which number type is faster on a device.

Invariant: importing this imports nothing heavy. A device that a setting names is used or refused, never replaced by
another; only `auto` chooses, by measurement, not by the device's description. Measuring draws no random numbers and
takes some milliseconds. The choice is float32 unless bfloat16 is clearly faster, so a near tie gives the same choice in
every process; within a process it is made once.
"""

import functools
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)
CLEARLY_FASTER = 1.25
"""Emulated bfloat16 was measured at 0.07 to 0.23 of float32's speed, native bfloat16 at 1.6 to 7 times."""
ROWS = {"cpu": 64, "cuda": 4096}
"""Input rows of the measured layer: on a GPU enough to make the launch time negligible."""
LARGEST = 1024
"""Maximum inputs and outputs of the measured layer: larger layers give the same ratio and take longer."""
PAIRS = 4


def resolve_device(name: str, setting: str) -> "torch.device":
    """The device for `name`; `auto` is CUDA if there is a CUDA device.

    Raises ValueError, naming `setting`, for an invalid name and for a device that does not exist.
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
    """Speed of a linear layer of `inputs` x `outputs` in bfloat16, relative to float32, on `device`."""
    import torch

    shape = min(outputs, LARGEST), min(inputs, LARGEST)
    weights = {dtype: torch.ones(shape, dtype=dtype, device=device) for dtype in (torch.float32, torch.bfloat16)}
    rows = {dtype: torch.ones(ROWS[device.type], shape[1], dtype=dtype, device=device) for dtype in weights}
    # Processor time of a single thread: neither the machine's load nor threads waiting for each other affect it.
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
                    if pair:  # libraries choose their kernels in the first
                        seconds[dtype].append(clock() - started)
    finally:
        torch.set_num_threads(threads)
    return max(min(seconds[torch.float32]), 1e-9) / max(min(seconds[torch.bfloat16]), 1e-9)


def bfloat16_is_faster(device: "torch.device", inputs: int, outputs: int, what: str) -> bool:
    """Whether bfloat16 is clearly faster than float32 in such a layer on `device`; logs the choice for `what`."""
    speed = bfloat16_speed(device, inputs, outputs)
    chosen = "bfloat16" if speed >= CLEARLY_FASTER else "float32"
    where = f"{device}: bfloat16 is {speed:.2g} times as fast in a layer of {inputs} x {outputs}"
    LOG.info("%s computes in %s on %s", what, chosen, where)
    return speed >= CLEARLY_FASTER
