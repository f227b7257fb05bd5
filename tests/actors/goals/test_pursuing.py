"""Goals in rollouts: as acted on, from the keeper to the learner; and the network that reads them."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from actors.captions import CaptionTracker
from actors.channels import Channels
from actors.environments.factory import make_environment
from actors.environments.vector import EnvironmentSpec
from actors.goals.entry import GOAL, GoalEntryEnvironment
from actors.goals.guide import GoalGuide
from actors.goals.keeper import GoalKeeper
from actors.goals.sheet import GoalSheet
from actors.inference import BatchedInference
from actors.policy import PolicyNet, snapshot
from actors.rollout import Rollout
from actors.worker import RolloutWorker
from configs.goal_schema import GoalsConfig
from configs.schema import ActorsConfig, EnvConfig, PolicyConfig
from tests.actors.goals.toy_goals import corridor_sheet, make_sheet
from tests.faults.faulty_environments import OnceBroken
from tests.toy_environments import encode_message

SMALL = PolicyConfig(hidden_size=16, core_size=12, reads_goal=True)
CORRIDOR = EnvConfig(
    id="tests.toy_environments:Corridor-v0", options={"length": 6, "slip": 0.1}, max_episode_steps=9, describer=""
)
NETHACK = EnvConfig(max_episode_steps=12)
GOALS = GoalsConfig(sources=["config"], patience_steps=4)
SHEET = corridor_sheet([1, 2, 3, 4], before=[-1, 0, -1, -1])
NUM_ENVS, NUM_STEPS = 6, 24


def make_net(spec: EnvironmentSpec, policy: PolicyConfig = SMALL, sheet: GoalSheet | None = SHEET) -> PolicyNet:
    torch.manual_seed(0)
    net = PolicyNet(spec, policy)
    torch.nn.init.orthogonal_(net.policy_head.weight, 3.0)  # at first all actions are all but equal
    if net.skip_head is not None:
        torch.nn.init.orthogonal_(net.skip_head.weight, 3.0)
    if sheet is not None:
        net.set_goal_vectors(sheet.vectors)
    return net


def make_worker(
    config: EnvConfig = CORRIDOR,
    policy: PolicyConfig = SMALL,
    goals: GoalsConfig | None = GOALS,
    *,
    precision: str = "fp32",
) -> RolloutWorker:
    env = make_environment(config, num_envs=NUM_ENVS, run_seed=1, worker_index=0, policy=policy)
    actors = ActorsConfig(rollout_steps=NUM_STEPS, precision=precision)
    inference = BatchedInference(make_net(env.spec, policy, None), env.spec, NUM_ENVS, actors)
    keeper = None if goals is None else GoalKeeper(goals, NUM_ENVS, seed=2)
    captions = CaptionTracker(NUM_ENVS)
    return RolloutWorker(env, inference, captions, actors, worker_id="0.0", seed=3, goals=keeper)


def check_against_the_learner(rollout: Rollout, net: PolicyNet, tolerance: float = 1e-5) -> None:
    """The learner computes from the rollout what the worker did, step by step."""
    ended = rollout.terminated | rollout.truncated
    obs = {name: torch.from_numpy(array[:-1].copy()) for name, array in rollout.obs.items()}
    core = {name: torch.from_numpy(array) for name, array in rollout.core_state.items()}
    resets = torch.from_numpy(np.concatenate([np.zeros_like(ended[:1]), ended[:-1]]))
    output = net(obs, core, resets)
    np.testing.assert_allclose(output.logits.detach(), rollout.behaviour_logits, atol=tolerance)
    np.testing.assert_allclose(output.values.detach(), rollout.behaviour_values, atol=tolerance)


@pytest.mark.parametrize(("config", "core"), [(CORRIDOR, "gru"), (CORRIDOR, "none"), (NETHACK, "lstm")])
def test_worker_and_learner_read_the_same_goals(config: EnvConfig, core: str) -> None:
    policy = dataclasses.replace(SMALL, core=core, previous_action=True)
    worker = make_worker(config, policy)
    net = make_net(worker.env.spec, policy)
    for version in (0, 1):  # the second begins in mid-episode
        rollout, report = worker.collect(snapshot(net, (1, version)), None, SHEET if version == 0 else None)
        assert rollout.obs[GOAL].dtype == np.int16
        assert rollout.obs[GOAL].shape == (NUM_STEPS + 1, NUM_ENVS)
        check_against_the_learner(rollout, net)
        assert report.goals is not None
        assert report.goals.attempted.sum() > 0
    assert len(np.unique(rollout.obs[GOAL])) > 2
    worker.close()


def test_a_rollout_has_the_goals_that_were_acted_on() -> None:
    """A goal is left when its cell is reached, when its patience ends, or with its episode."""
    worker = make_worker()
    rollout, report = worker.collect(snapshot(make_net(worker.env.spec), (1, 0)), None, SHEET)
    goals, cells = rollout.obs[GOAL], rollout.obs["position"].argmax(-1)
    ended = rollout.terminated | rollout.truncated
    achieved = 0
    for b in range(NUM_ENVS):
        age = 0
        for t in range(NUM_STEPS):
            age += 1
            goal = int(goals[t, b])
            assert 0 <= goal <= 4
            advanced = not ended[t, b] and rollout.actions[t, b] == 1 and cells[t + 1, b] == cells[t, b] + 1
            if goal == 0:
                assert ended[t, b] or goals[t + 1, b] == 0, "all were achieved"
            elif advanced and cells[t + 1, b] == goal:
                achieved += 1
                assert goals[t + 1, b] != goal
            elif not ended[t, b] and age < GOALS.patience_steps:
                assert goals[t + 1, b] == goal
            if ended[t, b] or goals[t + 1, b] != goal or age == GOALS.patience_steps:
                age = 0
    assert report.goals is not None
    assert report.goals.given_achieved.sum() >= achieved > 0
    assert report.goals.successes == rollout.terminated.sum(), "the corridor tells of its success"
    assert report.goals.failures == rollout.truncated.sum() > 0
    worker.close()


def test_the_value_of_an_episodes_last_observation_is_for_its_own_goal() -> None:
    policy = dataclasses.replace(SMALL, core="none")
    config = dataclasses.replace(CORRIDOR, options={"length": 6, "slip": 1.0}, max_episode_steps=5)
    goals = dataclasses.replace(GOALS, patience_steps=0)  # the goal stays, and the next episode's may be another
    worker = make_worker(config, policy, goals)
    net = make_net(worker.env.spec, policy)
    rollout, _ = worker.collect(snapshot(net, (1, 0)), None, SHEET)
    position, message = torch.zeros(1, 6), torch.from_numpy(encode_message("You slip.")).unsqueeze(0)
    position[0, 0] = 1
    others = 0
    for t, b in np.argwhere(rollout.truncated):
        last = {"position": position, "message": message, GOAL: torch.from_numpy(rollout.obs[GOAL][t, b : b + 1])}
        with torch.no_grad():
            assert net.step(last, {})[1].item() == pytest.approx(float(rollout.final_values[t, b]), abs=1e-5)
        others += rollout.obs[GOAL][t + 1, b] != rollout.obs[GOAL][t, b]
    assert others > 0
    worker.close()


def test_goals_that_are_not_read_change_nothing_but_the_counts() -> None:
    policy = dataclasses.replace(SMALL, reads_goal=False)
    with_goals, without = make_worker(policy=policy), make_worker(policy=policy, goals=None)
    weights = snapshot(make_net(without.env.spec, policy), (1, 0))
    (one, counted), (other, plain) = with_goals.collect(weights, None, SHEET), without.collect(weights, None)
    assert one.obs.keys() == other.obs.keys()
    for name in ("actions", "behaviour_logits", "final_values", "caption_ids"):
        assert np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "final_values"), name
    assert counted.goals is not None
    assert counted.goals.attempted.sum() > NUM_ENVS
    assert counted.goals.given_achieved.sum() > 0
    assert plain.goals is None
    assert "goals" not in without.state_dict()
    with_goals.close()
    without.close()


@pytest.mark.parametrize("env_id", ["Corridor", "ForgetfulCorridor"])
def test_a_resumed_worker_goes_on_with_its_goals(env_id: str) -> None:
    config = dataclasses.replace(CORRIDOR, id=f"tests.toy_environments:{env_id}-v0")
    worker, other, third = (make_worker(config) for _ in range(3))
    weights = snapshot(make_net(worker.env.spec), (1, 0))
    worker.collect(weights, None, SHEET)
    state = worker.state_dict()
    for each in (other, third):
        each.load_state_dict(state)
    if env_id == "Corridor":
        third = worker
    one, two = third.collect(weights, None, SHEET), other.collect(weights, None, SHEET)
    for name in ("actions", "behaviour_logits", "behaviour_values", "extrinsic_rewards"):
        assert np.array_equal(getattr(one[0], name), getattr(two[0], name)), name
    assert np.array_equal(one[0].obs[GOAL], two[0].obs[GOAL])
    assert np.array_equal(one[1].goals.attempted, two[1].goals.attempted)
    for each in (worker, other):
        each.close()


def test_new_goals_keep_what_old_ones_mean() -> None:
    """A worker with an older sheet is read rightly by a learner with a newer one: vectors stay."""
    worker = make_worker()
    newer = corridor_sheet([1, 2, 3, 4, 5], number=1)
    net = make_net(worker.env.spec, sheet=newer)
    rollout, _ = worker.collect(snapshot(net, (1, 0)), None, SHEET)
    check_against_the_learner(rollout, net)
    rollout, _ = worker.collect(snapshot(net, (1, 1)), None, newer)
    check_against_the_learner(rollout, net)
    worker.close()


def test_an_environment_that_was_lost_begins_with_a_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnceBroken, "made", 0)
    worker = make_worker(
        EnvConfig(id="tests.faults.faulty_environments:OnceBroken-v0", options={"which": 2, "at_step": 5})
    )
    rollout, report = worker.collect(snapshot(make_net(worker.env.spec), (1, 0)), None, make_sheet(["a", "b"]))
    assert rollout.lost == (2,)
    assert (rollout.obs[GOAL] > 0).all()
    assert report.goals is not None
    assert report.goals.successes + report.goals.failures == len(rollout.episodes), "without the lost one"
    worker.close()


def test_bf16_inference_reads_goals() -> None:
    worker = make_worker(precision="bf16")
    net = make_net(worker.env.spec)
    rollout, _ = worker.collect(snapshot(net, (1, 0)), None, SHEET)
    check_against_the_learner(rollout, net, tolerance=0.2)
    worker.close()


def test_a_guided_environment_gives_the_goals_of_a_worker() -> None:
    worker = make_worker()
    rollout, _ = worker.collect(snapshot(make_net(worker.env.spec), (1, 0)), None, SHEET)
    env = make_environment(CORRIDOR, num_envs=NUM_ENVS, run_seed=1, worker_index=0, policy=SMALL)
    assert isinstance(env, GoalEntryEnvironment)
    keeper = GoalKeeper(GOALS, NUM_ENVS, seed=2)
    keeper.take_sheet(SHEET)
    env.guide = GoalGuide(keeper, CaptionTracker(NUM_ENVS), Channels())
    obs, _ = env.reset()
    for t in range(NUM_STEPS):
        assert np.array_equal(obs[GOAL], rollout.obs[GOAL][t])
        obs = env.step(rollout.actions[t]).obs
    env.close()
    worker.close()


def random_obs(spec: EnvironmentSpec, goals: list[int]) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    obs = {
        name: torch.from_numpy(rng.integers(0, entry.num_values or 2, (len(goals), *entry.shape)).astype(entry.dtype))
        for name, entry in spec.observations.items()
    }
    return obs | ({GOAL: torch.tensor(goals, dtype=torch.int16)} if GOAL in spec.observations else {})


def of_spec(policy: PolicyConfig) -> EnvironmentSpec:
    env = make_environment(CORRIDOR, num_envs=1, run_seed=1, worker_index=0, policy=policy)
    env.close()
    return env.spec


@pytest.mark.parametrize("core", ["lstm", "none"])
def test_goal_0_is_no_goal(core: str) -> None:
    """A network that reads no goals has the same outputs, with the weights that both have."""
    policy = dataclasses.replace(SMALL, core=core)
    plain = dataclasses.replace(policy, reads_goal=False)
    net, other = make_net(of_spec(policy), policy), make_net(of_spec(plain), plain)
    shared = {}
    for name, own in other.state_dict().items():
        theirs = net.state_dict()[name]
        shared[name] = theirs[:, : own.shape[1]] if theirs.dim() == 2 else theirs  # without a goal's columns
    other.load_state_dict(shared)
    with torch.no_grad():
        results = [
            each.step(random_obs(of_spec(config), [0, 0]), each.initial_state(2))[:2]
            for each, config in ((net, policy), (other, plain))
        ]
    torch.testing.assert_close(*results)


def test_goals_are_told_apart_and_their_layers_learn() -> None:
    policy = dataclasses.replace(SMALL, core="none")
    net = make_net(of_spec(policy), policy)
    obs = random_obs(of_spec(policy), [0, 1, 2, 3])
    obs = {
        name: array[:1].repeat(4, *[1] * (array.dim() - 1)) if name != GOAL else array for name, array in obs.items()
    }
    logits, values, _ = net.step(obs, {})
    distances = torch.cdist(logits, logits) + torch.eye(4)
    assert distances.min() > 1e-2
    (logits[:, 0].sum() + values.sum()).backward()
    assert net.goal_reader is not None
    for layer in (net.goal_reader.goal, net.goal_reader.observed):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().max() > 0
    assert not any("vectors" in name for name in net.state_dict()), "they come with the sheet"


def test_gradients_are_those_without_reuse() -> None:
    worker = make_worker(NETHACK)
    rollout, _ = worker.collect(snapshot(make_net(worker.env.spec), (1, 0)), None, SHEET)
    obs = {name: torch.from_numpy(array) for name, array in rollout.obs.items()}
    gradients = []
    for reuse in (True, False):
        net = make_net(worker.env.spec, dataclasses.replace(SMALL, reuse_crops=reuse))
        output = net(obs, net.initial_state(NUM_ENVS))
        (output.logits.square().mean() + output.values.mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    assert "goal_reader.observed.weight" in gradients[0]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    worker.close()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: PolicyNet(of_spec(PolicyConfig()), SMALL), "policy.reads_goal is true, but the observations have no"),
        (
            lambda: make_net(of_spec(SMALL)).set_goal_vectors(np.zeros((3, 768))),
            r"got goal vectors of shape \(3, 768\)",
        ),
        (
            lambda: GoalEntryEnvironment(
                make_environment(CORRIDOR, num_envs=1, run_seed=1, worker_index=0, policy=SMALL)
            ),
            "the environment observes 'goal' itself; leave policy.reads_goal false",
        ),
    ],
)
def test_what_does_not_fit_is_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


def test_a_network_without_goals_has_no_part_of_them() -> None:
    policy = dataclasses.replace(SMALL, reads_goal=False)
    net = PolicyNet(of_spec(policy), policy)
    assert not any("goal" in name for name, _ in net.named_parameters())
    assert net.goal_vectors is None
    net.set_goal_vectors(SHEET.vectors)
