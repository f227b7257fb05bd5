"""The previous action and reward as entries of the observation, from the environment to the learner."""

import dataclasses

import numpy as np
import pytest
import torch

from actors.captions import CaptionTracker
from actors.environments.factory import make_environment
from actors.environments.vector import EnvironmentSpec, VectorEnvironment
from actors.inference import BatchedInference
from actors.policy import PolicyNet, snapshot
from actors.previous_step import ACTION, REWARD
from actors.rollout import Rollout
from actors.worker import RolloutWorker
from configs.schema import ActorsConfig, EnvConfig, PolicyConfig
from tests.toy_environments import encode_message

BOTH = PolicyConfig(hidden_size=32, core_size=16, previous_action=True, previous_reward=True)
CORRIDOR = EnvConfig(id="tests.toy_environments:Corridor-v0", options={"length": 3}, max_episode_steps=5)
NETHACK = EnvConfig(max_episode_steps=12)


def make(config: EnvConfig = CORRIDOR, policy: PolicyConfig = BOTH, num_envs: int = 2) -> VectorEnvironment:
    return make_environment(config, num_envs=num_envs, run_seed=1, worker_index=0, policy=policy)


def make_net(spec: EnvironmentSpec, policy: PolicyConfig) -> PolicyNet:
    torch.manual_seed(0)
    net = PolicyNet(spec, policy)
    torch.nn.init.orthogonal_(
        net.policy_head.weight, 3.0
    )  # at first all actions are all but equal, which would hide a difference
    return net


def make_worker(config: EnvConfig, policy: PolicyConfig, num_envs: int = 6) -> RolloutWorker:
    env = make(config, policy, num_envs)
    actors = ActorsConfig(rollout_steps=16, precision="fp32")
    inference = BatchedInference(make_net(env.spec, policy), env.spec, num_envs, actors)
    return RolloutWorker(env, inference, CaptionTracker(num_envs), actors, worker_id="0.0", seed=3)


def test_an_observation_has_the_action_and_reward_that_led_to_it_and_an_episodes_first_has_none() -> None:
    env = make()
    obs, _ = env.reset()
    assert {name: obs[name].tolist() for name in (ACTION, REWARD)} == {ACTION: [0, 0], REWARD: [0, 0]}
    out = {name: np.full((2, *spec.shape), 77, spec.dtype) for name, spec in env.spec.observations.items()}
    step = env.step(np.array([1, 0]), out)
    assert all(step.obs[name] is array for name, array in out.items())
    assert step.obs[ACTION].tolist() == [2, 1]
    step = env.step(np.array([1, 1]))
    assert out[ACTION].tolist() == [2, 1], "the caller's arrays of the step before"
    (end,) = step.ends
    assert (end.final_obs[ACTION], end.final_obs[REWARD], end.final_obs["position"].argmax()) == (2, 1, 2)
    assert (step.obs[ACTION].tolist(), step.obs[REWARD].tolist()) == ([0, 2], [0, 0])
    env.step(np.array([1, 1]))
    obs, _ = env.reset()
    assert not obs[ACTION].any()
    env.close()


def test_an_environment_that_raised_begins_without_a_previous_action() -> None:
    env = make(EnvConfig(id="tests.faults.faulty_environments:Faulty-v0", options={"raise_chance": 0.5}), num_envs=40)
    env.reset()
    step = env.step(np.ones(40, np.int64))
    lost = list(step.losses)
    assert 0 < len(lost) < 40
    assert step.obs[ACTION].tolist() == [0 if i in lost else 2 for i in range(40)]
    env.close()


def test_a_saved_environment_continues_with_its_previous_step() -> None:
    env, other = make(), make()
    env.reset()
    step = env.step(np.array([1, 0]))
    obs = other.load_state_dict(env.state_dict())
    assert obs is not None
    assert {name: array.tolist() for name, array in obs.items()} == {
        name: array.tolist() for name, array in step.obs.items()
    }
    unsaved = make(dataclasses.replace(CORRIDOR, id="tests.toy_environments:ForgetfulCorridor-v0"))
    unsaved.reset()
    unsaved.step(np.array([1, 0]))
    assert unsaved.load_state_dict(unsaved.state_dict()) is None
    assert not unsaved.reset()[0][ACTION].any()


def test_only_what_is_asked_for_is_observed() -> None:
    for action in (False, True):
        for reward in (False, True):
            spec = make(policy=PolicyConfig(previous_action=action, previous_reward=reward)).spec
            assert (ACTION in spec.observations, REWARD in spec.observations) == (action, reward)


@pytest.mark.parametrize(("num_actions", "dtype"), [(255, np.uint8), (256, np.int32)])
def test_every_action_has_a_number_of_its_own(num_actions: int, dtype: type) -> None:
    env = make(dataclasses.replace(CORRIDOR, options={"length": 3, "num_actions": num_actions}))
    entry = env.spec.observations[ACTION]
    assert (entry.dtype, entry.num_values) == (np.dtype(dtype), num_actions + 1)
    env.reset()
    assert env.step(np.array([num_actions - 1, 0])).obs[ACTION].tolist() == [num_actions, 1]


def test_an_environment_without_the_entries_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"policy\.previous_action is true, but the observations have no such entry"):
        PolicyNet(make(policy=PolicyConfig()).spec, BOTH)


def check_against_the_learner(rollout: Rollout, net: PolicyNet) -> None:
    """The rollout's entries are its own actions and rewards, and the learner computes from them what the worker did."""
    ended = rollout.terminated | rollout.truncated
    assert ended.any()
    assert not ended.all()
    np.testing.assert_array_equal(rollout.obs[ACTION][1:], np.where(ended, 0, rollout.actions + 1))
    np.testing.assert_array_equal(rollout.obs[REWARD][1:], np.where(ended, 0, rollout.extrinsic_rewards))
    obs = {name: torch.from_numpy(array[:-1].copy()) for name, array in rollout.obs.items()}
    core = {name: torch.from_numpy(array) for name, array in rollout.core_state.items()}
    resets = torch.from_numpy(np.concatenate([np.zeros_like(ended[:1]), ended[:-1]]))
    output = net(obs, core, resets)
    np.testing.assert_allclose(output.logits.detach(), rollout.behaviour_logits, atol=1e-5)
    np.testing.assert_allclose(output.values.detach(), rollout.behaviour_values, atol=1e-5)


@pytest.mark.parametrize("core", ["lstm", "none"])
@pytest.mark.parametrize("config", [CORRIDOR, NETHACK], ids=["mlp", "glyph_crop"])
def test_worker_and_learner_compute_the_same_from_a_rollout(config: EnvConfig, core: str) -> None:
    policy = dataclasses.replace(BOTH, core=core)
    worker = make_worker(config, policy)
    net = make_net(worker.env.spec, policy)
    for version in (0, 1):  # the second begins in mid-episode
        rollout, _ = worker.collect(snapshot(net, (1, version)), None)
        check_against_the_learner(rollout, net)
    worker.close()


def test_values_of_last_observations_see_the_last_action() -> None:
    worker = make_worker(CORRIDOR, dataclasses.replace(BOTH, core="none"))
    net = make_net(worker.env.spec, dataclasses.replace(BOTH, core="none"))
    rollout, _ = worker.collect(snapshot(net, (1, 0)), None)
    t, b = np.argwhere(rollout.truncated)[0]
    before, action = int(rollout.obs["position"][t, b].argmax()), int(rollout.actions[t, b])
    cell = before + 1 if action == 1 else max(before - 1, 0)
    bumped = "You bump into a wall." if action == 0 and before == 0 else ""
    said = bumped or f"You {'advance' if action == 1 else 'retreat'} to cell {cell}."
    message = torch.from_numpy(encode_message(said)).unsqueeze(0)
    last = {
        "position": torch.eye(3)[[cell]],
        "message": message,
        ACTION: torch.tensor([action + 1], dtype=torch.uint8),
        REWARD: torch.zeros(1),
    }
    _, value, _ = net.step(last, {})
    assert value.item() == pytest.approx(float(rollout.final_values[t, b]), abs=1e-5)
    worker.close()


def test_a_resumed_worker_goes_on_bit_for_bit() -> None:
    worker, other = make_worker(CORRIDOR, BOTH), make_worker(CORRIDOR, BOTH)
    weights = snapshot(make_net(worker.env.spec, BOTH), (1, 0))
    worker.collect(weights, None)
    other.load_state_dict(worker.state_dict())
    one, two = worker.collect(weights, None)[0], other.collect(weights, None)[0]
    for name in ("actions", "behaviour_logits", "behaviour_values", "extrinsic_rewards"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert all(np.array_equal(array, two.obs[name]) for name, array in one.obs.items())
    assert one.obs[ACTION][0].any()


def test_the_network_reads_actions_one_by_one_and_rewards_clipped() -> None:
    spec = make().spec
    net = make_net(spec, BOTH)

    def logits(action: int, reward: float) -> np.ndarray:
        obs = {
            name: torch.zeros(1, *entry.shape, dtype=torch.from_numpy(np.empty(0, entry.dtype)).dtype)
            for name, entry in spec.observations.items()
        }
        obs[ACTION][:], obs[REWARD][:] = action, reward
        with torch.no_grad():
            return net.step(obs, net.initial_state(1))[0].numpy()

    rows = [logits(action, 0.0) for action in range(3)]
    assert min(np.abs(rows[a] - rows[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3
    assert np.abs(logits(0, 0.5) - rows[0]).max() > 1e-3
    assert np.array_equal(logits(0, 1.0), logits(0, 1000.0))
    assert np.array_equal(logits(0, -1.0), logits(0, -1000.0))


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_gradients_are_those_without_reuse(core: str) -> None:
    worker = make_worker(NETHACK, BOTH)
    rollout, _ = worker.collect(snapshot(make_net(worker.env.spec, BOTH), (1, 0)), None)
    obs = {name: torch.from_numpy(array) for name, array in rollout.obs.items()}
    gradients = []
    for reuse in (True, False):
        net = make_net(worker.env.spec, dataclasses.replace(BOTH, core=core, reuse_crops=reuse))
        output = net(obs, net.initial_state(6))
        (output.logits.square().mean() + output.values.mean()).backward()
        gradients.append(
            {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}
        )
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    worker.close()
