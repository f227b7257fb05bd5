"""Every way of computing the policy against the plain one, on observations of real games."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from actors.environments.factory import make_environment
from actors.environments.vector import EnvironmentSpec
from actors.inference import BatchedInference
from actors.networks.repeated_rows import RepeatingEncoder
from actors.policy import PolicyNet, snapshot
from configs.schema import ActorsConfig, EnvConfig, PolicyConfig

NUM_ENVS, NUM_STEPS = 16, 32
FLOAT32 = 1e-5
"""Largest difference in float32: sums of products may be taken in another order for another batch size."""
BFLOAT16 = 0.05
"""Largest difference of log-probabilities, values and state to float32's over 32 steps: bf16 has three digits."""


NETWORKS = {"glyph_crop": "glyph_crop", "glyph_window": "nethack_full", "character_crop": "rendered_crop"}


class Games(NamedTuple):
    spec: EnvironmentSpec
    obs: dict[str, np.ndarray]
    """name -> [T, B, ...], read-only."""
    ended: np.ndarray
    """[T, B] bool: before which steps a new episode began."""


class Played(NamedTuple):
    log_probs: np.ndarray
    values: np.ndarray
    core: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=["glyph_crop", "nethack_full", "rendered_crop"])
def games(request: pytest.FixtureRequest) -> Games:
    env = make_environment(
        EnvConfig(max_episode_steps=20),
        num_envs=NUM_ENVS,
        run_seed=1,
        worker_index=0,
        policy=PolicyConfig(network=request.param),
    )
    rng = np.random.default_rng(0)
    steps, ended = [env.reset()[0]], [np.zeros(NUM_ENVS, bool)]
    try:
        for _ in range(NUM_STEPS - 1):
            step = env.step(rng.integers(0, env.spec.num_actions, NUM_ENVS))
            steps.append({name: array.copy() for name, array in step.obs.items()})
            ended.append(step.terminated | step.truncated)
    finally:
        env.close()
    obs = {name: np.stack([step[name] for step in steps]) for name in env.spec.observations}
    for array in obs.values():
        array.flags.writeable = False
    return Games(env.spec, obs, np.stack(ended))


def make_inference(
    spec: EnvironmentSpec, *, reuse: bool = True, precision: str = "fp32", seed: int = 0, device: str = "cpu"
) -> BatchedInference:
    torch.manual_seed(seed)
    network = next(name for entry, name in NETWORKS.items() if entry in spec.observations)
    net = PolicyNet(
        spec, PolicyConfig(network=network, hidden_size=128, core_size=64, encoder_gain=1.0, reuse_crops=reuse)
    )
    torch.nn.init.orthogonal_(
        net.policy_head.weight, 3.0
    )  # at first all actions are all but equal, which would hide a difference
    return BatchedInference(net, spec, NUM_ENVS, ActorsConfig(precision=precision, device=device))


def play(inference: BatchedInference, games: Games) -> Played:
    logits, values = [], []
    with inference.rollout(NUM_STEPS):
        for t in range(NUM_STEPS):
            inference.reset(np.flatnonzero(games.ended[t]).tolist())
            step_logits, step_values = inference.step({name: array[t] for name, array in games.obs.items()})
            logits.append(step_logits.copy())
            values.append(step_values.copy())
    log_probs = torch.from_numpy(np.stack(logits)).log_softmax(-1).numpy()
    return Played(log_probs, np.stack(values), inference.core_state())


def difference(one: Played, other: Played) -> float:
    pairs = [
        (one.log_probs, other.log_probs),
        (one.values, other.values),
        *((one.core[name], other.core[name]) for name in one.core),
    ]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def test_what_is_not_encoded_again_changes_nothing_in_float32(games: Games) -> None:
    assert games.ended.any()
    plain, reused = (play(make_inference(games.spec, reuse=reuse), games) for reuse in (False, True))
    assert np.exp(plain.log_probs).std() > 0.02
    assert difference(plain, reused) < FLOAT32


@pytest.mark.parametrize("reuse", [False, True])
def test_bf16_agrees_with_float32(games: Games, reuse: bool) -> None:
    exact = play(make_inference(games.spec, reuse=False), games)
    rounded = play(make_inference(games.spec, reuse=reuse, precision="bf16"), games)
    assert 0 < difference(exact, rounded) < BFLOAT16


def test_weights_held_in_bf16_give_what_autocast_gives_by_casting_them_at_each_use(games: Games) -> None:
    """Bit for bit, but for the table of the patches' sums, which autocast does not cast."""
    held, cast = (make_inference(games.spec, precision="bf16") for _ in range(2))
    cast._net = make_inference(games.spec)._net
    if hasattr(cast._net.encoder, "patches"):
        for weights in cast._net.encoder.patches.parameters():
            weights.data = weights.detach().bfloat16().float()
    assert held._net.core.input.weight.dtype == torch.bfloat16
    assert difference(play(held, games), play(cast, games)) == 0


def test_steps_and_the_learners_whole_sequence_agree(games: Games) -> None:
    inference = make_inference(games.spec)
    played = play(inference, games)
    obs = {name: torch.from_numpy(array.copy()) for name, array in games.obs.items()}
    with torch.no_grad():
        output = inference._net(obs, inference._net.initial_state(NUM_ENVS), torch.from_numpy(games.ended))
    whole = Played(
        output.logits.log_softmax(-1).numpy(),
        output.values.numpy(),
        {n: s.numpy() for n, s in output.core_state.items()},
    )
    assert difference(played, whole) < FLOAT32


MODULES = {"glyph_crop": "convolutions", "crop": "convolutions", "character_crop": "convolutions", "window": "outline"}
"""The encoding function of a branch, where its name differs."""


def test_only_what_was_not_seen_before_in_the_rollout_is_encoded(games: Games) -> None:
    inference = make_inference(games.spec)
    encoder = inference._net.encoder
    assert isinstance(encoder, RepeatingEncoder)
    obs = {name: torch.from_numpy(array.reshape(-1, *array.shape[2:]).copy()) for name, array in games.obs.items()}
    rows = {name: branch[0].numpy() for name, branch in encoder.branches(obs).items() if name in encoder.repeating}
    names = {name: MODULES.get(name, name) for name in rows}
    distinct = {names[name]: len(np.unique(array, axis=0)) for name, array in rows.items()}
    asked = dict.fromkeys(distinct, 0)

    def count(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor], torch.Tensor], None]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            asked[name] += len(inputs[0])

        return hook

    for name in asked:
        getattr(encoder, name).register_forward_hook(count(name))
    play(inference, games)
    assert asked == distinct
    assert max(distinct.values()) < 0.6 * NUM_STEPS * NUM_ENVS
    play(inference, games)  # afresh: the weights might be others
    assert asked == {name: 2 * number for name, number in distinct.items()}


def test_new_weights_are_used_from_the_next_rollout_on(games: Games) -> None:
    inference, other = make_inference(games.spec, seed=0), make_inference(games.spec, seed=1)
    play(inference, games)
    inference.load(snapshot(other._net, (1, 1)))
    inference.reset(range(NUM_ENVS))
    assert difference(play(inference, games), play(other, games)) == 0


def test_the_state_can_be_reset_saved_and_restored_outside_a_rollout(games: Games) -> None:
    inference = make_inference(games.spec)
    play(inference, games)
    saved = inference.core_state()
    inference.reset([3])
    changed = inference.core_state()
    assert all(not changed[name][3].any() and np.array_equal(changed[name][4:], saved[name][4:]) for name in saved)
    inference.load_core_state(saved)
    assert all(np.array_equal(array, saved[name]) for name, array in inference.core_state().items())
    assert all(array.any() for array in saved.values())


def test_values_of_last_observations_come_from_the_state_of_their_environment(games: Games) -> None:
    inference = make_inference(games.spec)
    play(inference, games)
    saved, last = inference.core_state(), {name: array[-1].copy() for name, array in games.obs.items()}
    rows = [2, 7, 11]
    with inference.rollout(1):
        values = inference.values({name: array[rows] for name, array in last.items()}, rows)
        assert all(np.array_equal(array, saved[name]) for name, array in inference.core_state().items())
        np.testing.assert_allclose(values, inference.step(last)[1][rows], atol=FLOAT32)


def test_a_device_that_is_not_there_is_refused_by_the_settings_name(games: Games) -> None:
    with pytest.raises(ValueError, match=r"actors\.device: got 'cuda:99'"):
        make_inference(games.spec, device="cuda:99")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_computes_what_the_cpu_does(games: Games, precision: str) -> None:
    exact, on_gpu = (
        play(make_inference(games.spec), games),
        make_inference(games.spec, device="cuda", precision=precision),
    )
    assert difference(exact, play(on_gpu, games)) < BFLOAT16
    other = make_inference(games.spec, seed=1)
    on_gpu.load(snapshot(other._net, (1, 1)))  # the recorded step sees new weights
    on_gpu.reset(range(NUM_ENVS))
    assert difference(play(other, games), play(on_gpu, games)) < BFLOAT16
