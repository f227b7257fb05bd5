import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.networks.repeated_rows import convolve_categories, embed_patches

NUM_CATEGORIES, WIDTH, CHANNELS = 40, 6, 5


def make_parameters(side: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (NUM_CATEGORIES, WIDTH), (CHANNELS, WIDTH, side, side), (CHANNELS,)
    embedding, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    )
    return embedding, weight, bias


def draw(*shape: int) -> Tensor:
    """Categories of which some are frequent and some never occur."""
    return torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(1), dtype=torch.int16).square() + 3


def embed_and_convolve(categories: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(
        F.embedding(categories.long(), embedding).movedim(-1, 1), weight, bias, padding=weight.shape[-1] // 2
    )


def with_gradients(outputs: Tensor, parameters: tuple[Tensor, ...]) -> list[Tensor]:
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [outputs.detach(), *torch.autograd.grad((outputs * weights).sum(), parameters)]


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("shape", [(4, 9, 9), (1, 3, 7), (30, 5, 5)])
def test_sums_of_table_rows_equal_embedding_and_convolving_borders_and_gradients_included(
    shape: tuple[int, int, int], side: int
) -> None:
    categories, parameters = draw(*shape), make_parameters(side)
    got = with_gradients(convolve_categories(categories, *parameters), parameters)
    wanted = with_gradients(embed_and_convolve(categories, *parameters), parameters)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_in_bf16_it_rounds_no_more_than_the_convolution_does() -> None:
    categories = draw(30, 9, 9)
    exact, parameters = make_parameters(3), make_parameters(3, torch.float32)
    wanted = with_gradients(embed_and_convolve(categories, *exact), exact)

    def errors(compute: object) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = compute(categories, *parameters)  # type: ignore[operator]
        assert outputs.dtype == torch.bfloat16
        return [
            float((a.double() - b).norm() / b.norm())
            for a, b in zip(with_gradients(outputs, parameters), wanted, strict=True)
        ]

    sums, convolution = errors(convolve_categories), errors(embed_and_convolve)
    assert max(sums) < 0.01
    assert sum(sums) < 1.2 * sum(convolution)


def test_channels_lie_last_in_memory_as_the_next_convolution_likes_them() -> None:
    outputs = convolve_categories(draw(4, 9, 9), *make_parameters(3))
    assert outputs.shape == (4, CHANNELS, 9, 9)
    assert outputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("rows", "columns", "side"), [(21, 45, 3), (4, 6, 2), (5, 5, 1)])
def test_patches_equal_embedding_and_convolving_with_a_stride_gradients_included(
    rows: int, columns: int, side: int
) -> None:
    torch.manual_seed(0)
    embedding, layer = nn.Embedding(NUM_CATEGORIES, WIDTH).double(), nn.Conv2d(WIDTH, CHANNELS, side, side).double()
    parameters = (embedding.weight, layer.weight, layer.bias)
    glyphs = draw(4, rows, columns)
    outputs = embed_patches(glyphs, embedding, layer)
    assert outputs.is_contiguous(memory_format=torch.channels_last)
    wanted = layer(embedding(glyphs.long()).movedim(-1, 1))
    torch.testing.assert_close(
        with_gradients(outputs, parameters), with_gradients(wanted, parameters), rtol=1e-10, atol=1e-10
    )


def test_a_category_that_there_is_not_is_refused() -> None:
    with pytest.raises(IndexError):
        convolve_categories(torch.full((1, 3, 3), NUM_CATEGORIES), *make_parameters(3))
