import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from actors.captions import CaptionTracker
from actors.environments.factory import make_environment
from actors.environments.vector import VectorEnvironment
from actors.inference import BatchedInference
from actors.policy import PolicyNet, PolicySnapshot, snapshot
from actors.rollout import Rollout
from actors.worker import RolloutWorker
from configs.schema import ActorsConfig, EnvConfig, PolicyConfig

NUM_ENVS, NUM_STEPS = 8, 16
NETHACK = EnvConfig(max_episode_steps=12)
CORRIDOR = EnvConfig(id="tests.toy_environments:Corridor-v0", options={"slip": 0.2}, max_episode_steps=6)


@pytest.fixture
def to_close() -> Iterator[list[VectorEnvironment]]:
    opened: list[VectorEnvironment] = []
    yield opened
    for env in opened:
        env.close()


def make_worker(
    to_close: list[VectorEnvironment], config: EnvConfig, *, num_steps: int = NUM_STEPS, reuse: bool = True
) -> RolloutWorker:
    env = make_environment(config, num_envs=NUM_ENVS, run_seed=5, worker_index=0)
    to_close.append(env)
    net = PolicyNet(env.spec, PolicyConfig(hidden_size=64, core_size=32, reuse_crops=reuse))
    actors = ActorsConfig(rollout_steps=num_steps, precision="fp32")
    inference = BatchedInference(net, env.spec, NUM_ENVS, actors)
    return RolloutWorker(env, inference, CaptionTracker(NUM_ENVS), actors, worker_id="0.0", seed=3)


def make_weights(worker: RolloutWorker, seed: int, version: int, gain: float = 3.0) -> PolicySnapshot:
    torch.manual_seed(seed)
    net = PolicyNet(worker.env.spec, PolicyConfig(hidden_size=64, core_size=32))
    torch.nn.init.orthogonal_(net.policy_head.weight, gain)
    return snapshot(net, (1, version))


def arrays(rollout: Rollout) -> dict[str, np.ndarray]:
    fields = {name: getattr(rollout, name) for name in Rollout.__slots__}
    return {name: array for name, array in (fields | fields["obs"]).items() if isinstance(array, np.ndarray)}


def test_rollouts_are_the_same_whether_or_not_crops_are_encoded_again(to_close: list[VectorEnvironment]) -> None:
    workers = [make_worker(to_close, NETHACK, reuse=reuse) for reuse in (True, False)]
    for version in (0, 1):  # the second under other weights
        one, other = (arrays(worker.collect(make_weights(worker, version, version), None)[0]) for worker in workers)
        assert one["truncated"].any()
        for name, array in one.items():
            if array.dtype == np.float32:
                np.testing.assert_allclose(array, other[name], atol=1e-5, err_msg=name)
            else:
                np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_actions_are_drawn_from_the_policys_distribution(to_close: list[VectorEnvironment]) -> None:
    worker = make_worker(to_close, CORRIDOR, num_steps=500)
    rollout, _ = worker.collect(make_weights(worker, 0, 0, gain=20.0), None)
    chances = torch.from_numpy(rollout.behaviour_logits).softmax(-1).numpy()
    drawn = np.eye(chances.shape[-1])[rollout.actions]
    sigma = np.sqrt((chances * (1 - chances)).sum((0, 1)))
    assert chances.std() > 0.05
    assert (np.abs((drawn - chances).sum((0, 1))) < 4 * sigma).all()
    # Not only on average: where an action is likelier it is drawn more often.
    likely = chances[..., 1] > np.median(chances[..., 1])
    assert (
        drawn[likely, 1].mean() - drawn[~likely, 1].mean()
        > 0.5 * (chances[likely, 1].mean() - chances[~likely, 1].mean())
        > 0.02
    )


def test_a_truncated_episodes_own_last_observation_has_a_value_and_nothing_else_has(
    to_close: list[VectorEnvironment],
) -> None:
    worker = make_worker(to_close, CORRIDOR)
    rollout, _ = worker.collect(make_weights(worker, 0, 0), None)
    assert 0 < rollout.truncated.sum() < rollout.truncated.size
    np.testing.assert_array_equal(np.isfinite(rollout.final_values), rollout.truncated)


def test_a_rollouts_timings_are_its_stages_and_add_up_to_collect(to_close: list[VectorEnvironment]) -> None:
    worker = make_worker(to_close, NETHACK)
    weights = make_weights(worker, 0, 0)
    for _ in range(2):
        began = time.perf_counter()
        rollout, _ = worker.collect(weights, None)
        duration = time.perf_counter() - began
        assert set(rollout.timings) == {"env", "inference", "other"}
        assert min(rollout.timings.values()) > 0
        assert duration - 0.05 < sum(rollout.timings.values()) <= duration


def test_a_worker_without_weights_says_so(to_close: list[VectorEnvironment]) -> None:
    with pytest.raises(RuntimeError, match="before any policy snapshot"):
        make_worker(to_close, CORRIDOR).collect(None, None)
