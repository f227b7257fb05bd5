import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.environments.factory import make_environment
from actors.environments.vector import ArraySpec, EnvironmentSpec
from actors.networks.encoders import ImageEncoder, VectorEncoder, is_channels_first, module_name
from actors.networks.nethack_encoders import GlyphCropEncoder, ScaledBlstats
from actors.networks.repeated_rows import encode_rows
from actors.policy import PolicyNet, load_weights, snapshot
from configs.schema import EnvConfig, PolicyConfig

NUM_ACTIONS = 5
SMALL = PolicyConfig(core_size=16, hidden_size=24, embedding_size=8, encoder_gain=1.0)


def numeric(*shape: int, dtype: type = np.float32) -> ArraySpec:
    return ArraySpec(shape=shape, dtype=np.dtype(dtype))


def categorical(*shape: int, num_values: int) -> ArraySpec:
    return ArraySpec(shape=shape, dtype=np.dtype(np.int16), num_values=num_values)


OBSERVATIONS = {
    "glyph_crop": {
        "glyph_crop": categorical(9, 9, num_values=5977),
        "blstats": numeric(27),
        "message": numeric(256, dtype=np.uint8),
    },
    "nethack_full": {
        "glyph_window": categorical(21, 45, num_values=5977),
        "blstats": numeric(27),
        "message": numeric(256, dtype=np.uint8),
        "inv_letters": categorical(55, num_values=128),
        "inv_oclasses": categorical(55, num_values=19),
    },
    "cnn": {"pixels": numeric(48, 40, 3, dtype=np.uint8), "speed": numeric(2)},
    "text": {"said": ArraySpec(shape=(40,), dtype=np.dtype(np.uint8), is_text=True), "speed": numeric(2)},
    "mlp": {
        "room": categorical(num_values=100),
        "doors": categorical(4, num_values=3),
        "speed": numeric(2),
        "clock": numeric(),
    },
}


def make_spec(network: str) -> EnvironmentSpec:
    return EnvironmentSpec(observations=OBSERVATIONS[network], num_actions=NUM_ACTIONS)


def make_net(network: str = "mlp", *, core: str = "lstm", core_skip: bool = False, seed: int = 0) -> PolicyNet:
    torch.manual_seed(seed)
    net = PolicyNet(
        make_spec(network),
        dataclasses.replace(SMALL, network="mlp" if network == "text" else network, core=core, core_skip=core_skip),
    )
    torch.nn.init.orthogonal_(net.policy_head.weight)  # as after training: at first all actions are all but equal
    return net


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_first_weights_are_orthogonal_with_the_gain_of_their_place(network: str):
    net = PolicyNet(make_spec(network), dataclasses.replace(SMALL, encoder_gain=1.5, head_gain=0.02))
    layers = [layer for layer in net.encoder.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    for layer, gain in [*((layer, 1.5) for layer in layers), (net.policy_head, 0.02), (net.value_head, 1.0)]:
        singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
        torch.testing.assert_close(singular, torch.full_like(singular, gain))
        assert not layer.bias.any()


def random_obs(network: str, *shape: int, seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)

    def draw(spec: ArraySpec) -> np.ndarray:
        if spec.num_values or spec.dtype == np.uint8:
            return rng.integers(0, spec.num_values or 256, (*shape, *spec.shape)).astype(spec.dtype)
        return (rng.normal(size=(*shape, *spec.shape)) * 20).astype(spec.dtype)

    return {name: torch.from_numpy(draw(spec)) for name, spec in OBSERVATIONS[network].items()}


def step_by_step(
    net: PolicyNet, obs: dict[str, Tensor], state: dict[str, Tensor], reset_before: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    logits, values = [], []
    for t in range(len(reset_before)):
        state = {name: torch.where(reset_before[t, :, None], torch.zeros(()), tensor) for name, tensor in state.items()}
        step_logits, step_values, state = net.step({name: array[t] for name, array in obs.items()}, state)
        logits.append(step_logits)
        values.append(step_values)
    return torch.stack(logits), torch.stack(values), state


@pytest.mark.parametrize("core_skip", [False, True])
@pytest.mark.parametrize("core", ["lstm", "gru", "none"])
@pytest.mark.parametrize("network", list(OBSERVATIONS))
def test_a_sequence_with_resets_equals_its_steps_one_by_one(network: str, core: str, core_skip: bool) -> None:
    net, obs = make_net(network, core=core, core_skip=core_skip), random_obs(network, 7, 3)
    state = {name: torch.randn_like(tensor) for name, tensor in net.initial_state(3).items()}
    reset_before = torch.zeros(7, 3, dtype=torch.bool)
    reset_before[[0, 3, 3, 6], [2, 0, 1, 1]] = True
    output = net(obs, state, reset_before)
    logits, values, last_state = step_by_step(net, obs, state, reset_before)
    assert output.logits.shape == (7, 3, NUM_ACTIONS)
    assert output.values.shape == (7, 3)
    torch.testing.assert_close(output.logits, logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.values, values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.core_state, last_state, rtol=1e-5, atol=1e-6)


def test_with_a_skip_the_heads_see_what_a_core_that_says_nothing_keeps_from_them() -> None:
    for core_skip in (False, True):
        net, obs = make_net(core_skip=core_skip), random_obs("mlp", 1, 2)
        torch.nn.init.zeros_(net.core.input.weight)
        logits = net(obs, net.initial_state(2)).logits[0]
        assert torch.equal(logits[0], logits[1]) != core_skip


@pytest.mark.parametrize("core_skip", [False, True])
def test_other_units_of_value_change_no_value(core_skip: bool) -> None:
    net, obs = make_net(core_skip=core_skip), random_obs("mlp", 4, 3)
    before = net(obs, net.initial_state(3))
    for mean, scale in ((5.0, 20.0), (-1.0, 0.01)):
        net.rescale_values(torch.tensor(mean), torch.tensor(scale))
        after = net(obs, net.initial_state(3))
        torch.testing.assert_close(after.values, before.values, rtol=1e-4, atol=1e-4)
        assert torch.equal(after.logits, before.logits)
    assert (net.value_mean, net.value_scale) == (-1.0, torch.tensor(0.01))


def test_weights_from_before_values_had_units_are_read_as_they_were() -> None:
    net, other = make_net(seed=1), make_net(seed=2)
    other.rescale_values(torch.tensor(3.0), torch.tensor(2.0))
    weights = {
        name: array
        for name, array in snapshot(net, (0, 0)).weights.items()
        if name not in ("value_mean", "value_scale")
    }
    load_weights(other, weights)
    obs = random_obs("mlp", 1, 2)
    assert torch.equal(other(obs, other.initial_state(2)).values, net(obs, net.initial_state(2)).values)


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_nothing_crosses_a_reset_in_either_direction(core: str) -> None:
    net, obs = make_net(core=core), random_obs("mlp", 6, 2)
    state = {name: torch.randn_like(tensor).requires_grad_() for name, tensor in net.initial_state(2).items()}
    reset_before = torch.zeros(6, 2, dtype=torch.bool)
    reset_before[4, 0] = True
    output = net(obs, state, reset_before)
    fresh = net({name: array[4:] for name, array in obs.items()}, net.initial_state(2))
    torch.testing.assert_close(output.logits[4:, 0], fresh.logits[:, 0])
    output.values[4:].sum().backward()
    for tensor in state.values():
        assert tensor.grad is not None
        assert not tensor.grad[0].any()
        assert tensor.grad[1].any()


def test_a_reset_clears_even_a_state_that_is_not_finite() -> None:
    net, obs = make_net(), random_obs("mlp", 1, 1)
    state = {name: torch.full_like(tensor, torch.nan) for name, tensor in net.initial_state(1).items()}
    assert net(obs, state, torch.ones(1, 1, dtype=torch.bool)).logits.isfinite().all()


@pytest.mark.parametrize(("core", "names"), [("lstm", {"h", "c"}), ("gru", {"h"}), ("none", set())])
def test_the_core_state_is_float32_under_the_names_of_a_rollout(core: str, names: set[str]) -> None:
    net = make_net(core=core)
    with torch.autocast("cpu", torch.bfloat16):
        _, _, state = net.step(random_obs("mlp", 4), net.initial_state(4))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} == dict.fromkeys(
        names, ((4, 16), torch.float32)
    )


@pytest.mark.parametrize("core_skip", [False, True])
@pytest.mark.parametrize("network", list(OBSERVATIONS))
def test_every_parameter_learns(network: str, core_skip: bool) -> None:
    net = make_net(network, core_skip=core_skip)
    output = net(random_obs(network, 3, 4), net.initial_state(4))
    (output.logits.logsumexp(-1).sum() + output.logits[..., 0].sum() + output.values.sum()).backward()
    assert [
        name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ] == []


def test_actions_are_nearly_equal_at_first() -> None:
    net = PolicyNet(make_spec("glyph_crop"), SMALL)
    logits, _, _ = net.step(random_obs("glyph_crop", 16), net.initial_state(16))
    assert (logits.softmax(-1) - 1 / NUM_ACTIONS).abs().max() < 0.02


def test_repeated_crops_give_what_each_gives_alone_gradients_included() -> None:
    net = make_net("glyph_crop")
    encoder = net.encoder
    assert isinstance(encoder, GlyphCropEncoder)
    crops = random_obs("glyph_crop", 4)["glyph_crop"].flatten(1)[[0, 1, 0, 2, 2, 3, 0]]
    crops[3, 40] += 1  # all but one cell of two neighbours are equal
    weights = torch.randn(7, SMALL.hidden_size)

    def gradients(features: Tensor) -> list[Tensor]:
        net.zero_grad()
        (features * weights).sum().backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    shared, alone = encode_rows(crops, encoder._convolve, reuses=True).rows(), encoder._convolve(crops)
    torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(shared), gradients(alone), rtol=1e-4, atol=1e-5)


def test_no_statistic_of_the_game_is_out_of_the_networks_scale() -> None:
    blstats = torch.zeros(3, 27)
    blstats[1] = 1e9
    blstats[2, [10, 11, 25]] = torch.tensor([7.0, 14.0, float(1 << 12 | 1 << 3)])
    scaled = ScaledBlstats()(blstats)
    assert scaled.isfinite().all()
    assert scaled.abs().max() <= 5
    assert scaled[2, 27] == 0.5  # the share of hit points left
    assert scaled[2, 29:].nonzero().flatten().tolist() == [3, 12]  # the bits of the condition


def test_images_may_have_their_channels_first_or_last() -> None:
    last = {"pixels": numeric(48, 40, 3, dtype=np.uint8)}
    first = {"pixels": numeric(3, 48, 40, dtype=np.uint8)}
    one, other = ImageEncoder(last, SMALL), ImageEncoder(first, SMALL)
    other.load_state_dict(one.state_dict())
    image = torch.randint(0, 256, (2, 48, 40, 3), dtype=torch.uint8)
    torch.testing.assert_close(one({"pixels": image}), other({"pixels": image.movedim(-1, 1)}), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "layout", "is_first"),
    [
        ((7, 7, 20), "auto", False), ((10, 20, 15), "auto", False), ((8, 8, 8), "auto", False),
        ((10, 4, 4), "auto", False), ((3, 3, 3), "auto", False),
        ((210, 160, 3), "auto", False), ((84, 84, 12), "auto", False), ((2, 2, 5), "auto", False),
        ((3, 210, 160), "auto", True), ((4, 84, 84), "auto", True), ((20, 7, 7), "auto", True),
        ((1, 20, 10), "auto", True),
        ((4, 84, 84), "channels_last", False), ((7, 7, 20), "channels_first", True),
    ],
)  # fmt: skip
def test_the_axis_of_the_channels_follows_a_rule_or_the_setting(
    shape: tuple[int, int, int], layout: str, is_first: bool
) -> None:
    assert is_channels_first(shape, layout) == is_first
    encoder = ImageEncoder({"image": numeric(*shape, dtype=np.uint8)}, dataclasses.replace(SMALL, image_layout=layout))
    assert encoder.stacks["image"][0].in_channels == (shape[0] if is_first else shape[2])
    assert encoder({"image": torch.zeros(2, *shape, dtype=torch.uint8)}).shape == (2, encoder.num_features)


def test_images_are_read_as_fractions_of_their_scale() -> None:
    spec = {"image": numeric(7, 7, 3, dtype=np.uint8)}
    torch.manual_seed(0)
    pictures, codes = (ImageEncoder(spec, dataclasses.replace(SMALL, image_scale=scale)) for scale in (255.0, 5.0))
    codes.load_state_dict(pictures.state_dict())
    image = torch.randint(0, 6, (4, 7, 7, 3), dtype=torch.uint8)
    torch.testing.assert_close(codes({"image": image}), pictures({"image": image * 51}))


def test_entries_may_have_any_name() -> None:
    names = ["type", "items", "a.b", "", "%type", "a%2Eb", "_modules", "training", "forward", "core h", "room/key.0"]
    assert len({module_name(name) for name in names}) == len(names), "one to one"
    assert module_name("message") == "message", "the names in checkpoints stay"
    observations = {f"{name}{kind}": spec for name in names for kind, spec in (("", categorical(num_values=100)),)}
    observations |= {
        "keys": numeric(8, 8, 3, dtype=np.uint8),
        "values": ArraySpec(shape=(9,), dtype=np.dtype(np.uint8), is_text=True),
    }
    net = PolicyNet(EnvironmentSpec(observations=observations, num_actions=2), SMALL)
    obs = {name: torch.zeros(3, *spec.shape, dtype=torch.uint8) for name, spec in observations.items()}
    net.step(obs, net.initial_state(3))
    load_weights(net, snapshot(net, (0, 0)).weights)


def test_texts_are_read_by_their_words_each_once() -> None:
    said = [b"You open the door.", b"you  OPEN the door!", b"You close the door.", b"You open the door."]
    rows = torch.from_numpy(np.stack([np.frombuffer(text.ljust(40, b"\0"), np.uint8) for text in said]))
    encoders = []
    for reuse in (True, False):
        torch.manual_seed(0)
        encoders.append(VectorEncoder(OBSERVATIONS["text"], dataclasses.replace(SMALL, reuse_crops=reuse)))
    once, each = (encoder({"said": rows, "speed": torch.zeros(4, 2)}) for encoder in encoders)
    torch.testing.assert_close(once, each)
    torch.testing.assert_close(once[0], once[1])
    torch.testing.assert_close(once[0], once[3])
    assert (once[0] - once[2]).abs().max() > 0.05


@pytest.mark.parametrize("shape", [(7, 7, 3), (16, 16, 1), (84, 84, 4), (4, 84, 84), (210, 160, 3)])
def test_images_of_any_usual_size_are_read(shape: tuple[int, int, int]) -> None:
    encoder = ImageEncoder({"image": numeric(*shape, dtype=np.uint8)}, SMALL)
    assert encoder({"image": torch.zeros(2, *shape, dtype=torch.uint8)}).shape == (2, SMALL.hidden_size)


@pytest.mark.parametrize(
    ("network", "encoder"), [("glyph_crop", GlyphCropEncoder), ("cnn", ImageEncoder), ("mlp", VectorEncoder)]
)
def test_auto_takes_the_network_that_fits_the_observations(network: str, encoder: type) -> None:
    assert isinstance(PolicyNet(make_spec(network), SMALL).encoder, encoder)


@pytest.mark.parametrize(
    ("observations", "changes", "message"),
    [
        (
            OBSERVATIONS["mlp"],
            {"network": "glyph_crop"},
            "no glyph_crop, blstats, message .it has room, .*choose network",
        ),
        (OBSERVATIONS["mlp"], {"network": "cnn"}, "wants a uint8 image.*choose 'mlp'"),
        (
            OBSERVATIONS["mlp"],
            {"network": "transformer"},
            "got 'transformer', wanted one of auto, glyph_crop, nethack_full, rendered_crop, cnn, mlp",
        ),
        (OBSERVATIONS["mlp"], {"core": "rnn"}, "got 'rnn', wanted one of lstm, gru, none"),
        (OBSERVATIONS["glyph_crop"] | {"blstats": numeric(26)}, {}, r"wants .*blstats \[27\]"),
        ({}, {}, "no observation entry"),
    ],
)
def test_a_network_that_does_not_fit_says_what_was_given_and_wanted(
    observations: dict[str, ArraySpec], changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyNet(EnvironmentSpec(observations=observations, num_actions=2), dataclasses.replace(SMALL, **changes))


def test_a_snapshot_is_a_copy_that_makes_another_net_equal() -> None:
    net, other = make_net("glyph_crop", seed=0), make_net("glyph_crop", seed=1)
    taken = snapshot(net, (2, 5))
    obs = random_obs("glyph_crop", 3)
    wanted = net.step(obs, net.initial_state(3))[0].detach()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for array in taken.weights.values():
        array.flags.writeable = False  # as they come out of an object store
    load_weights(other, taken.weights)
    assert taken.policy_version == (2, 5)
    assert {array.dtype for array in taken.weights.values()} == {np.dtype(np.float32)}
    assert torch.equal(other.step(obs, other.initial_state(3))[0], wanted)


def test_a_snapshot_of_another_network_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        load_weights(make_net("mlp"), snapshot(make_net("cnn"), (0, 0)).weights)


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_worker_and_learner_agree_on_log_probabilities_of_real_observations(core: str) -> None:
    num_envs, num_steps = 8, 24
    env = make_environment(
        EnvConfig(max_episode_steps=10), num_envs=num_envs, run_seed=3, worker_index=0
    )  # resets in mid-rollout
    torch.manual_seed(0)
    net = PolicyNet(env.spec, PolicyConfig(core=core))
    torch.nn.init.orthogonal_(
        net.policy_head.weight, 3.0
    )  # at first all actions are all but equal, which would hide a difference
    rng = np.random.default_rng(0)
    steps: list[dict[str, Tensor]] = []
    worker_logits = []
    reset_before = torch.zeros(num_steps, num_envs, dtype=torch.bool)
    try:
        obs, _ = env.reset()
        state = net.initial_state(num_envs)
        for t in range(num_steps):
            steps.append({name: torch.from_numpy(array.copy()) for name, array in obs.items()})
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                logits, _, state = net.step(steps[t], state)
            worker_logits.append(logits)
            taken = env.step(rng.integers(0, env.spec.num_actions, num_envs))
            ended = torch.from_numpy(taken.terminated | taken.truncated)
            for tensor in state.values():
                tensor[ended] = 0.0
            if t + 1 < num_steps:
                reset_before[t + 1] = ended
            obs = taken.obs
    finally:
        env.close()
    assert reset_before.any()
    joined = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
    acted = torch.stack(worker_logits).log_softmax(-1)
    assert acted.exp().std() > 0.02
    with torch.autocast("cpu", torch.bfloat16):
        in_bf16 = net(joined, net.initial_state(num_envs), reset_before).logits.log_softmax(-1)
    in_fp32 = net(joined, net.initial_state(num_envs), reset_before).logits.log_softmax(-1)
    assert (in_bf16 - acted).abs().max() < 0.05
    assert (in_fp32 - acted).abs().max() < 0.05
