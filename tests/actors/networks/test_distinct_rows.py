import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actors.networks.repeated_rows import GRANULE, MAX_SIZES, RepeatedRows, encode_rows, project


def draw_rows(num_rows: int = 40, num_columns: int = 3, num_values: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(
        0, num_values, (num_rows, num_columns), generator=torch.Generator().manual_seed(seed), dtype=torch.int16
    )


def make_layer(num_inputs: int, num_outputs: int, seed: int, dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(num_inputs, num_outputs).to(dtype)


def with_gradients(outputs: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [outputs.detach(), *torch.autograd.grad((outputs * weights).sum(), parameters)]


def test_each_distinct_row_is_encoded_once_in_the_order_of_its_first_place() -> None:
    rows, asked = torch.tensor([[5, 1], [3, 1], [5, 1], [5, 2], [3, 1]]).repeat(20, 1), []

    def encode(distinct: Tensor) -> Tensor:
        asked.append(distinct.tolist())
        return distinct.float()

    repeated = encode_rows(rows, encode, reuses=True)
    assert asked == [[[5, 1], [3, 1], [5, 2], *[[5, 1]] * (GRANULE - 3)]]
    assert repeated.places is not None
    assert repeated.places.tolist() == [0, 1, 0, 2, 1] * 20
    torch.testing.assert_close(repeated.rows(), rows.float())


def test_few_numbers_of_rows_are_ever_asked_for_and_never_more_than_there_are() -> None:
    asked = set()
    for num_distinct in range(1, 301, 7):
        rows = torch.arange(300)[:, None].clamp(max=num_distinct - 1)
        asked.add(len(encode_rows(rows, lambda distinct: distinct.float(), reuses=True).distinct))
    assert asked == {64, 128, 192, 256, 300}


@pytest.mark.parametrize("num_rows", [2000, 4224, 20_000])
def test_the_numbers_stay_few_in_large_batches(num_rows: int) -> None:
    asked = set()
    for num_distinct in range(1, num_rows + 1, num_rows // 100):
        rows = torch.arange(num_rows)[:, None].clamp(max=num_distinct - 1)
        asked.add(len(encode_rows(rows, lambda distinct: distinct.float(), reuses=True).distinct))
    assert 16 < len(asked) <= MAX_SIZES + 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.int64])
def test_rows_of_any_dtype_and_layout_are_told_apart_by_their_last_value(dtype: torch.dtype) -> None:
    rows = torch.zeros(6, 5, dtype=dtype)
    rows[3:, -1] = 1
    for layout in (rows, rows.t().contiguous().t()):
        repeated = encode_rows(layout, lambda distinct: distinct.double(), reuses=True)
        assert repeated.places is not None
        assert repeated.places.tolist() == [0, 0, 0, 1, 1, 1]
        torch.testing.assert_close(repeated.rows(), rows.double())


def test_outputs_and_gradients_are_those_of_encoding_every_row() -> None:
    rows, layer = draw_rows(), make_layer(3, 4, seed=1)
    shared = encode_rows(rows, lambda r: layer(r.double()).tanh(), reuses=True)
    assert shared.places is not None
    assert shared.places.max() == 7
    assert len(shared.distinct) == min(GRANULE, len(rows))
    parameters = list(layer.parameters())
    torch.testing.assert_close(
        with_gradients(shared.rows(), parameters),
        with_gradients(encode_rows(rows, lambda r: layer(r.double()).tanh(), reuses=False).rows(), parameters),
    )


@pytest.mark.parametrize("reuses", [(True, False), (True, True), (False, False)])
def test_projecting_before_repeating_is_projecting_the_rows_side_by_side(reuses: tuple[bool, bool]) -> None:
    first, second, layer = make_layer(3, 4, seed=1), make_layer(2, 5, seed=2), make_layer(9, 6, seed=3)
    columns = draw_rows(), draw_rows(num_columns=2, seed=1)
    parameters = [*first.parameters(), *second.parameters(), *layer.parameters()]
    branches = [
        encode_rows(rows, lambda r, encoder=encoder: encoder(r.double()).tanh(), reuses=does)
        for does, rows, encoder in zip(reuses, columns, (first, second), strict=True)
    ]
    side_by_side = torch.cat(
        [encoder(rows.double()).tanh() for rows, encoder in zip(columns, (first, second), strict=True)], -1
    )
    torch.testing.assert_close(
        with_gradients(project(branches, layer), parameters), with_gradients(layer(side_by_side), parameters)
    )


def test_gradients_of_many_equal_rows_are_added_without_bf16s_rounding() -> None:
    encoded = torch.ones(2, 32, dtype=torch.bfloat16, requires_grad=True)
    places = np.repeat([0, 1], [4096, 10])
    RepeatedRows(encoded, places).rows().sum().backward()
    assert encoded.grad is not None
    assert encoded.grad[:, 0].tolist() == [4096, 10]  # one at a time, bf16 would stop at 256
