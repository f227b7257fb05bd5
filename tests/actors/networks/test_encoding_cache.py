import numpy as np
import torch
from torch import Tensor

from actors.networks.repeated_rows import EncodingCache


class Doubling:
    """An encoder that records its calls."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.asked += rows.tolist()
        return rows.float() * 2


def test_no_row_is_encoded_twice_however_often_and_wherever_it_comes_back() -> None:
    encode, cache = Doubling(), EncodingCache(max_rows=400)
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows = torch.from_numpy(rng.integers(-1, 2, (10, 3)).astype(np.int16))
        assert torch.equal(cache(rows, encode), rows.float() * 2)
    assert len(encode.asked) == len(set(map(tuple, encode.asked))) == 27
    cache(torch.zeros(4, 3, dtype=torch.int16), encode)
    assert len(encode.asked) == 27


def test_rows_that_differ_in_one_byte_are_told_apart() -> None:
    rows = torch.zeros(3, 4, dtype=torch.int16)
    rows[1, 3], rows[2, 3] = (
        256,
        1,
    )  # the last byte, the last but one: neither zeros at the end nor the order of bytes hide it
    encode = Doubling()
    assert torch.equal(EncodingCache(max_rows=3)(rows, encode), rows.float() * 2)
    assert len(encode.asked) == 3


def test_rows_need_not_lie_together_in_memory() -> None:
    rows = torch.arange(24, dtype=torch.int16).reshape(4, 6)[:, ::2]
    assert torch.equal(EncodingCache(max_rows=4)(rows, Doubling()), rows.float() * 2)


def test_what_was_given_out_stays_when_more_rows_come() -> None:
    cache = EncodingCache(max_rows=4)
    first = cache(torch.tensor([[1], [2]]), Doubling())
    cache(torch.tensor([[3], [1]]), Doubling())
    assert first.tolist() == [[2.0], [4.0]]
