"""ONI's encoder: its sizes, and its drawing against one cell at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actors.environments.factory import make_environment
from actors.environments.nethack.crop import view_for
from actors.environments.vector import ArraySpec, EnvironmentSpec
from actors.networks.rendered_crop import (
    BLSTATS_SCALES,
    CELL,
    PALETTE,
    RenderedCropEncoder,
    character_shapes,
    glyph_atlas,
)
from actors.networks.repeated_rows import encode_rows
from actors.policy import PolicyNet, snapshot
from configs.schema import EnvConfig, PolicyConfig

ONI = PolicyConfig(
    network="rendered_crop",
    core="gru",
    core_size=512,
    hidden_size=512,
    head_gain=1.0,
    encoder_gain=1.0,
    core_skip=False,
)
SMALL = dataclasses.replace(ONI, core_size=16, hidden_size=24)
OBSERVATIONS = {
    "character_crop": view_for("rendered_crop").spec,
    "blstats": ArraySpec(shape=(27,), dtype=np.dtype(np.float32)),
    "message": ArraySpec(shape=(256,), dtype=np.dtype(np.uint8)),
}
SPEC = EnvironmentSpec(observations=OBSERVATIONS, num_actions=28)


def make_net(config: PolicyConfig = SMALL) -> tuple[PolicyNet, RenderedCropEncoder]:
    torch.manual_seed(0)
    net = PolicyNet(SPEC, config)
    assert isinstance(net.encoder, RenderedCropEncoder)
    return net, net.encoder


def random_windows(num: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        np.stack([rng.integers(0, 256, (num, 12, 12)), rng.integers(0, 16, (num, 12, 12))], -1).astype(np.uint8)
    )


def random_obs(*shape: int, seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    windows = random_windows(int(np.prod(shape)), seed).unflatten(0, shape)
    blstats = torch.from_numpy((rng.normal(size=(*shape, 27)) * 20).astype(np.float32))
    return {
        "character_crop": windows,
        "blstats": blstats,
        "message": torch.from_numpy(rng.integers(0, 256, (*shape, 256), np.uint8)),
    }


def test_the_layers_have_onis_sizes() -> None:
    net, encoder = make_net(ONI)
    sizes, picture = [], torch.zeros(1, 3, 72, 72)
    for layer in encoder.convolutions:
        picture = layer(picture)
        if isinstance(layer, nn.Conv2d):
            sizes.append(picture.shape[1:])
    assert sizes == [(32, 17, 17), (64, 7, 7), (128, 3, 3)]
    assert picture.numel() == 1152
    assert encoder.project[0].weight.shape == (512, 1152)
    assert encoder.num_features == 795
    assert encoder(random_obs(2)).shape == (2, 795)
    assert net.core.kind == "gru"
    assert net.core.input.weight.shape == (3 * 512, 795)
    assert all(
        isinstance(layer, nn.Conv2d | nn.Linear | nn.ELU)
        for layer in (*encoder.convolutions, *encoder.blstats, *encoder.message)
    )


def test_the_number_of_parameters_is_the_sum_over_the_layers() -> None:
    net, _ = make_net(ONI)

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    picture = linear(3 * 8 * 8, 32) + linear(32 * 4 * 4, 64) + linear(64 * 3 * 3, 128) + linear(1152, 512)
    blstats, message = linear(27, 128) + linear(128, 128), linear(256, 128) + linear(128, 128)
    gru = 3 * (linear(795, 512) + linear(512, 512))
    assert sum(p.numel() for p in net.parameters()) == picture + blstats + message + gru + linear(512, 28) + linear(
        512, 1
    )
    units = {"value_mean", "value_scale"}
    assert set(snapshot(net, (0, 0)).weights) == units | {name for name, _ in net.named_parameters()}, (
        "the atlas does not travel"
    )


def test_first_weights_are_orthogonal_with_gain_1_everywhere() -> None:
    net, _ = make_net(ONI)
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer not in (net.core.input, net.core.recurrent):
            rows = layer.weight.flatten(1)
            rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
            torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-4, rtol=0)
            assert not layer.bias.any()


def test_looking_cells_up_draws_what_drawing_them_one_by_one_draws() -> None:
    _, encoder = make_net()
    windows = random_windows(3)
    shapes = character_shapes()
    for window, picture in zip(windows.numpy(), encoder.render(windows).numpy(), strict=True):
        drawn = np.zeros((3, 72, 72), np.uint8)
        for row, column in np.ndindex(12, 12):
            character, colour = window[row, column]
            for y, x in np.ndindex(CELL, CELL):
                if shapes[character, y, x]:
                    drawn[:, row * CELL + y, column * CELL + x] = PALETTE[colour]
        assert np.array_equal(picture, drawn)


def test_printable_characters_differ_and_so_do_colours() -> None:
    atlas = glyph_atlas().reshape(256, 16, -1)
    printable = atlas[33:127].reshape(94 * 16, -1)
    assert len(np.unique(printable, axis=0)) == 94 * 16
    assert printable.any(1).all()
    assert not atlas[ord(" ")].any()
    shapes = character_shapes()[33:127]
    differing = (shapes[:, None] != shapes[None]).sum((-1, -2)) + 99 * np.eye(94, dtype=int)
    assert differing.min() >= 2, "pixels in which the two most alike differ"


def test_the_network_sees_a_picture_of_fractions_and_black_outside() -> None:
    _, encoder = make_net()
    seen = []
    encoder.convolutions.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    window = torch.tensor([ord(" "), 0], dtype=torch.uint8).repeat(1, 12, 12, 1)
    window[0, 6, 6] = torch.tensor([ord("@"), 15])
    encoder(random_obs(1) | {"character_crop": window})
    (picture,) = seen
    assert picture.shape == (1, 3, 72, 72)
    assert picture.max() == 1
    assert picture[:, :, 36:42, 36:42].sum() == picture.sum() > 0


def test_blstats_are_scaled_as_documented_clipped_and_concatenated() -> None:
    _, encoder = make_net()
    blstats = torch.zeros(2, 27)
    blstats[0, [0, 1, 3, 8, 10, 11, 13, 20]] = torch.tensor([39.5, 21.0, 18.0, 10.0, 20.0, 1000.0, 500.0, 2000.0])
    blstats[0, [9, 12, 24, 25, 26]] = 1000.0  # score, depth, level, condition, alignment
    scaled = encoder.scale_blstats(blstats)
    wanted = {0: 0.5, 1: 1.0, 3: 1.8, 8: 1.0, 10: 2.0, 11: 5.0, 13: 0.5, 20: 2.0}
    assert scaled[0].tolist() == pytest.approx([wanted.get(i, 0.0) for i in range(27)])
    assert encoder.scale_blstats(-blstats)[0, 11] == -5
    assert len(BLSTATS_SCALES) == 27
    features = encoder(random_obs(2) | {"blstats": blstats})
    assert torch.equal(features[:, SMALL.hidden_size + 128 :][:, :27], scaled)


def test_repeated_windows_give_what_each_gives_alone_gradients_included() -> None:
    net, encoder = make_net()
    rows = random_windows(4).flatten(1)[[0, 1, 0, 2, 2, 3, 0]]
    rows[3, 40] += 1  # all but one byte of two neighbours are equal
    weights = torch.randn(7, SMALL.hidden_size)

    def gradients(features: Tensor) -> list[Tensor]:
        net.zero_grad()
        (features * weights).sum().backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    shared, alone = encode_rows(rows, encoder._convolve, reuses=True).rows(), encoder._convolve(rows)
    torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(shared), gradients(alone), rtol=1e-3, atol=1e-4)


def test_a_sequence_with_resets_equals_its_steps_one_by_one_and_every_parameter_learns() -> None:
    net, _ = make_net()
    obs, state = random_obs(5, 3), net.initial_state(3)
    reset_before = torch.zeros(5, 3, dtype=torch.bool)
    reset_before[2, 1] = True
    output = net(obs, state, reset_before)
    for t in range(5):
        state = {name: torch.where(reset_before[t, :, None], torch.zeros(()), tensor) for name, tensor in state.items()}
        logits, values, state = net.step({name: array[t] for name, array in obs.items()}, state)
        torch.testing.assert_close(output.logits[t], logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.values[t], values, rtol=1e-4, atol=1e-5)
    (output.logits.logsumexp(-1).sum() + output.logits[..., 0].sum() + output.values.sum()).backward()
    assert [
        name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ] == []


def test_bf16_agrees_with_float32_on_real_observations() -> None:
    env = make_environment(EnvConfig(), num_envs=4, run_seed=0, worker_index=0, policy=ONI)
    obs = {name: torch.from_numpy(array) for name, array in env.reset()[0].items()}
    net = PolicyNet(env.spec, SMALL)
    env.close()
    exact, _, _ = net.step(obs, net.initial_state(4))
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _, _ = net.step(obs, net.initial_state(4))
    assert (exact.log_softmax(-1) - rounded.log_softmax(-1)).abs().max() < 0.05


def test_another_environment_is_refused_with_what_it_has() -> None:
    glyphs = ArraySpec(shape=(9, 9), dtype=np.dtype(np.int16), num_values=5977)
    with pytest.raises(
        ValueError, match=r"reads character_crop \(12, 12, 2\).* has glyph_crop \(9, 9\).*choose network 'auto'"
    ):
        PolicyNet(EnvironmentSpec(observations={"glyph_crop": glyphs}, num_actions=2), ONI)
