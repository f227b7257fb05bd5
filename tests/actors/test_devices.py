import ctypes
import subprocess
import sys

import pytest
import torch

from configs.devices import resolve_device


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "cuda:99"])
def test_a_device_that_is_not_there_is_named_in_the_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"actors.device: got '{name}'"):
        resolve_device(name, "actors.device")


def test_auto_takes_cuda_where_there_is_a_device() -> None:
    assert resolve_device("auto", "actors.device").type == ("cuda" if torch.cuda.is_available() else "cpu")


GROWTH = """
import ctypes, sys
import torch
from actors.policy import bound_kept_kernels
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Heap
if sys.argv[1] == "bound":
    bound_kept_kernels(64)
torch.set_num_threads(1)
layer = torch.nn.Conv2d(8, 16, 3)
in_use = []
with torch.inference_mode():
    for rows in range(1, 401):
        layer(torch.zeros(rows, 8, 9, 9))
        in_use.append(mallinfo().uordblks)
print(in_use[399] - in_use[199])
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2") or not torch.backends.mkldnn.is_available(),
    reason="oneDNN is what keeps, and glibc 2.33 or newer says what is in use",
)
def test_what_is_kept_for_every_number_of_rows_is_bounded() -> None:
    unbound, bound = (
        int(subprocess.run([sys.executable, "-c", GROWTH, how], capture_output=True, text=True, check=True).stdout)
        for how in ("free", "bound")
    )
    assert unbound > 2_000_000, "what is to be bounded is there"
    assert bound < unbound / 10
