"""The features in rollouts, against a slow loop that plays the same games step by step."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from actors.captions import CaptionTracker
from actors.channels import Channels
from actors.environments.factory import make_environment
from actors.environments.vector import SeedStream
from actors.features.signals import FEATURES as CHANNEL
from actors.inference import BatchedInference
from actors.policy import PolicyNet, snapshot
from actors.rollout import Rollout
from actors.worker import RolloutWorker
from configs.schema import ActorsConfig, EnvConfig, PolicyConfig
from tests.actors.features.drifting import FEATURES, HERE, NAMES, Drift, expected

NUM_ENVS, NUM_STEPS, LIMIT = 4, 12, 7
POLICY = PolicyConfig(hidden_size=16, core_size=16)
DRIFT = EnvConfig(
    id=f"{HERE}:Drift-v0",
    captioner=f"{HERE}:nothing",
    max_episode_steps=LIMIT,
    features=FEATURES,
    feature_names=["place", "clock"],
)
SAVING = dataclasses.replace(DRIFT, id=f"{HERE}:SavingDrift-v0")
UNKNOWN = [float("nan")] * len(NAMES)
PLAIN = ("actions", "behaviour_logits", "extrinsic_rewards", "terminated", "truncated", "caption_ids")


class Reference:
    """Plays each environment by itself, with the rollouts' actions."""

    def __init__(self, fails: float = 0.0) -> None:
        self._fails, self._seeds = fails, SeedStream(run_seed=5, stream="train", worker_index=0)
        self._games = [self._begun(i, 0) for i in range(NUM_ENVS)]
        self.seen = dict.fromkeys(("terminated", "truncated", "lost"), 0)

    def _begun(self, i: int, episode: int) -> dict[str, Any]:
        env = Drift(self._fails)
        first = expected(*env.reset(seed=self._seeds.seed(i, episode) % 2**31))
        return {"env": env, "episode": episode, "steps": 0, "start": first, "now": first}

    def signals(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        after, before, start = (np.zeros((*actions.shape, len(NAMES)), np.float32) for _ in range(3))
        for t, i in np.ndindex(actions.shape):
            game = self._games[i]
            before[t, i], start[t, i] = game["now"], game["start"]
            try:
                obs, _, terminated, _, info = game["env"].step(int(actions[t, i]))
            except OSError:
                after[t, i] = UNKNOWN
                self.seen["lost"] += 1
                self._games[i] = self._begun(i, game["episode"] + 1)
                continue
            game["steps"] += 1
            after[t, i] = game["now"] = expected(obs, info)
            if terminated or game["steps"] == LIMIT:
                self.seen["terminated" if terminated else "truncated"] += 1
                self._games[i] = self._begun(i, game["episode"] + 1)
        return {"features": after, "features_before": before, "features_start": start}


@pytest.fixture
def make_worker() -> Iterator[Callable[..., RolloutWorker]]:
    workers: list[RolloutWorker] = []

    def make(config: EnvConfig, reads: tuple[str, ...] = (CHANNEL,)) -> RolloutWorker:
        env = make_environment(config, num_envs=NUM_ENVS, run_seed=5, worker_index=0)
        actors = ActorsConfig(rollout_steps=NUM_STEPS, precision="fp32")
        inference = BatchedInference(PolicyNet(env.spec, POLICY), env.spec, NUM_ENVS, actors)
        read = Channels(reads, NUM_ENVS, env.spec.action_names, num_features=len(env.spec.features))
        trackers: Any = (env, inference, CaptionTracker(NUM_ENVS), actors)
        workers.append(RolloutWorker(*trackers, worker_id="0.0", seed=3, channels=read))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def collect(worker: RolloutWorker) -> Rollout:
    torch.manual_seed(0)
    return worker.collect(snapshot(PolicyNet(worker.env.spec, POLICY), (1, 0)), None)[0]


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize("fails", [0.0, 0.03])
def test_signals_are_those_of_a_per_step_loop_over_ends_truncations_and_losses(
    fails: float, make_worker: Callable[..., RolloutWorker]
) -> None:
    worker, reference = make_worker(dataclasses.replace(DRIFT, options={"fails": fails})), Reference(fails)
    assert worker.env.spec.features == NAMES
    lost: list[int] = []
    for _ in range(8):
        rollout = collect(worker)
        assert_same(rollout.signals, reference.signals(rollout.actions))
        lost += rollout.lost
        kept = rollout.without_lost().signals
        assert {array.shape for array in kept.values()} == {(NUM_STEPS, NUM_ENVS - len(rollout.lost), len(NAMES))}
    assert reference.seen["terminated"] > 5
    assert reference.seen["truncated"] > 5
    assert (reference.seen["lost"] > 2) == bool(lost) == (fails > 0)


def test_a_resumed_worker_continues_exactly_amid_its_episodes(make_worker: Callable[..., RolloutWorker]) -> None:
    worker, successor, reference = make_worker(SAVING), make_worker(SAVING), Reference()
    for _ in range(2):
        reference.signals(collect(worker).actions)
    plain = json.dumps(worker.state_dict(), default=lambda array: {"array": array.tolist(), "dtype": str(array.dtype)})
    collect(successor)
    successor.load_state_dict(_arrays(json.loads(plain)))
    for _ in range(3):
        rollout, theirs = collect(worker), collect(successor)
        assert_same(rollout.signals, theirs.signals)
        assert_same(theirs.signals, reference.signals(theirs.actions))
    begun_before = theirs.signals["features_start"][0] != theirs.signals["features_before"][0]
    assert begun_before[:, 1].any(), "or no episode went on over two rollouts"


def test_a_worker_that_cannot_resume_begins_new_episodes(make_worker: Callable[..., RolloutWorker]) -> None:
    worker, successor = make_worker(DRIFT), make_worker(DRIFT)
    collect(worker)
    successor.load_state_dict(worker.state_dict())
    signals = collect(successor).signals
    np.testing.assert_array_equal(signals["features_before"][0], signals["features_start"][0])
    assert (signals["features_before"][0, :, 1] == 0).all()


def test_features_change_nothing_else_and_are_collected_only_if_read(make_worker: Callable[..., RolloutWorker]) -> None:
    bare = make_worker(dataclasses.replace(DRIFT, features=[], feature_names=[]), reads=())
    unread, read = make_worker(DRIFT, reads=()), make_worker(DRIFT)
    assert bare.env.features is None
    assert bare.env.spec.features == ()
    for _ in range(3):
        rollouts = [collect(worker) for worker in (bare, unread, read)]
        for name in PLAIN:
            first, *others = (getattr(rollout, name).tobytes() for rollout in rollouts)
            assert others == [first, first], name
    assert [len(rollout.signals) for rollout in rollouts] == [0, 0, 3]
    assert "channels" not in unread.state_dict()
    assert "features" not in bare.state_dict()["env"]


def test_a_reader_of_features_without_any_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env\.features: got none, wanted blstats, minigrid, obs, info:KEY, module"):
        Channels((CHANNEL,), 1)


def _arrays(state: Any) -> Any:
    if isinstance(state, dict):
        if state.keys() == {"array", "dtype"}:
            return np.array(state["array"], state["dtype"])
        return {key: _arrays(value) for key, value in state.items()}
    return state
