"""The encoder `nethack_full`, branch by branch against plain implementations."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.environments.factory import make_environment
from actors.environments.nethack.crop import make_maps, view_for
from actors.environments.vector import ArraySpec, EnvironmentSpec
from actors.networks.nethack_encoders import NO_CLASS, InventoryEncoder, NetHackFullEncoder
from actors.policy import PolicyNet
from configs.schema import EnvConfig, PolicyConfig

SMALL = PolicyConfig(network="nethack_full", core_size=16, hidden_size=24, embedding_size=8)
SLOTS = 55


def make_spec() -> EnvironmentSpec:
    u8 = np.dtype(np.uint8)
    observations = {
        "glyph_window": view_for("nethack_full").spec,
        "blstats": ArraySpec(shape=(27,), dtype=np.dtype(np.float32)),
        "message": ArraySpec(shape=(256,), dtype=u8),
        "inv_letters": ArraySpec(shape=(SLOTS,), dtype=u8, num_values=128),
        "inv_oclasses": ArraySpec(shape=(SLOTS,), dtype=u8, num_values=19),
    }
    return EnvironmentSpec(observations=observations, num_actions=5)


def make_encoder(config: PolicyConfig = SMALL) -> NetHackFullEncoder:
    torch.manual_seed(0)
    encoder = PolicyNet(make_spec(), config).encoder
    assert isinstance(encoder, NetHackFullEncoder)
    return encoder


@pytest.fixture(scope="module")
def games() -> dict[str, Tensor]:
    """Steps of real games, [T * B, ...]."""
    env = make_environment(EnvConfig(), num_envs=4, run_seed=2, worker_index=0, policy=SMALL)
    rng = np.random.default_rng(0)
    steps = [env.reset()[0]]
    steps += [env.step(rng.integers(env.spec.num_actions, size=4)).obs for _ in range(60)]
    env.close()
    return {name: torch.from_numpy(np.concatenate([step[name] for step in steps])) for name in steps[0]}


@pytest.mark.parametrize("crop_size", [5, 9, 21])
def test_the_crop_is_the_middle_of_the_window(crop_size: int) -> None:
    maps = make_maps(3, ("glyphs",))
    maps["glyphs"][:, :-1] = np.random.default_rng(0).integers(0, 5000, maps["glyphs"][:, :-1].shape)
    x, y = np.array([0, 40, 78]), np.array([20, 10, 0])
    shown = []
    for view in (view_for("glyph_crop", crop_size), view_for("nethack_full")):
        shown.append(np.empty((3, *view.spec.shape), view.spec.dtype))
        view.cut(maps, x, y, shown[-1])
    obs = {name: torch.zeros(3, *spec.shape, dtype=torch.uint8) for name, spec in make_spec().observations.items()}
    obs["glyph_window"] = torch.from_numpy(shown[1])
    crops, _ = make_encoder(dataclasses.replace(SMALL, crop_size=crop_size)).branches(obs)["crop"]
    assert np.array_equal(crops.numpy(), shown[0].reshape(3, -1))


def test_repeats_encoded_once_give_what_each_gives_alone_gradients_included(games: dict[str, Tensor]) -> None:
    encoder = make_encoder()
    weights = torch.randn(len(games["blstats"]), encoder.num_features)

    def with_gradients(reuses: bool) -> tuple[Tensor, list[Tensor]]:
        encoder.zero_grad()
        encoder._reuses = reuses
        features = encoder(games)
        (features * weights).sum().backward()
        return features.detach(), [
            parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None
        ]

    (once, gradients), (each, wanted) = with_gradients(True), with_gradients(False)
    torch.testing.assert_close(once, each, rtol=1e-4, atol=1e-5)
    assert len(gradients) == len(list(encoder.parameters()))
    for gradient, other in zip(gradients, wanted, strict=True):
        assert (gradient - other).norm() <= 1e-5 * other.norm()


def test_with_and_without_gradients_it_computes_the_same(games: dict[str, Tensor]) -> None:
    encoder = make_encoder()
    with torch.no_grad():
        played = encoder(games)
    torch.testing.assert_close(played, encoder(games).detach(), rtol=1e-5, atol=1e-6)


def test_what_is_far_from_the_hero_is_seen(games: dict[str, Tensor]) -> None:
    encoder = make_encoder()
    near = {name: array[:1].clone() for name, array in games.items()}
    for row, column in ((0, 0), (20, 44), (10, 3), (2, 22)):
        far = near | {"glyph_window": near["glyph_window"].clone()}
        far["glyph_window"][0, row, column] = 2383  # stairs down
        assert (encoder(far) - encoder(near)).abs().max() > 1e-4


def test_the_inventory_is_a_sum_over_its_objects() -> None:
    torch.manual_seed(0)
    encoder = InventoryEncoder()
    letters, classes = torch.zeros(3, SLOTS, dtype=torch.uint8), torch.full((3, SLOTS), NO_CLASS, dtype=torch.uint8)
    held = {0: [("a", 2), ("b", 3), ("Z", 7), ("$", 12)], 1: [("b", 3), ("$", 12), ("a", 2), ("Z", 7)], 2: []}
    for row, objects in held.items():
        for slot, (letter, kind) in enumerate(objects):
            letters[row, slot], classes[row, slot] = ord(letter), kind
    summed: list[Tensor] = []
    encoder.layers.register_forward_hook(lambda module, inputs, output: summed.append(inputs[0]))
    encoder(torch.cat([letters, classes], 1))
    vectors = encoder.vectors.weight
    numbers = {"a": 1, "b": 2, "Z": 52, "$": 53}
    wanted = sum(vectors[kind] + vectors[numbers[letter] * 19 + kind] for letter, kind in held[0])
    torch.testing.assert_close(summed[0], torch.stack([wanted, wanted, torch.zeros_like(wanted)]))


def test_an_objects_letter_and_its_class_make_a_difference(games: dict[str, Tensor]) -> None:
    encoder = make_encoder()
    held = {name: array[:1].clone() for name, array in games.items()}
    assert held["inv_letters"][0, 0] == ord("a"), "every character starts with something"
    before = encoder(held)
    for name, value in (("inv_letters", ord("q")), ("inv_oclasses", 13)):
        other = held | {name: held[name].clone()}
        other[name][0, 0] = value
        assert (encoder(other) - before).abs().max() > 1e-4


def test_bf16_agrees_with_float32(games: dict[str, Tensor]) -> None:
    net = PolicyNet(make_spec(), SMALL)
    obs = {name: array.unsqueeze(0) for name, array in games.items()}
    exact = net(obs, net.initial_state(len(games["blstats"])))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(obs, net.initial_state(len(games["blstats"])))
    assert (exact.logits.log_softmax(-1) - rounded.logits.log_softmax(-1)).abs().max() < 0.05
    assert (exact.values - rounded.values).abs().max() < 0.05


@pytest.mark.parametrize(
    ("changes", "crop_size", "message"),
    [
        ({"glyph_window": None}, 9, r"reads glyph_window, .*has blstats \(27,\).*choose network 'auto'"),
        (
            {"glyph_window": ArraySpec(shape=(21, 79), dtype=np.dtype(np.int16), num_values=5977)},
            9,
            r"has .*glyph_window \(21, 79\)",
        ),
        ({}, 23, r"policy\.crop_size: got 23, wanted at most 21"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    changes: dict[str, ArraySpec | None], crop_size: int, message: str
) -> None:
    observations = {name: spec for name, spec in (make_spec().observations | changes).items() if spec is not None}
    with pytest.raises(ValueError, match=message):
        PolicyNet(
            EnvironmentSpec(observations=observations, num_actions=5), dataclasses.replace(SMALL, crop_size=crop_size)
        )
