"""Central inference of a policy that reads goals: the server has the vectors, its worker the sheet."""

import threading
from pathlib import Path

import numpy as np
import torch

from actors.captions import CaptionTracker
from actors.central.client import CentralInference
from actors.central.exchange import split_rows
from actors.central.server import InferenceServer
from actors.environments.factory import make_environment
from actors.environments.split import SplitEnvironment
from actors.environments.vector import EnvironmentSpec
from actors.goals.entry import GOAL
from actors.goals.keeper import GoalKeeper
from actors.policy import PolicyNet, PolicySnapshot, snapshot
from actors.worker import RolloutWorker
from configs.goal_schema import GoalsConfig
from configs.schema import PolicyConfig
from tests.actors.central.small_node import ACTORS, CORRIDOR, NUM_ENVS
from tests.actors.goals.toy_goals import corridor_sheet

POLICY = PolicyConfig(hidden_size=16, core_size=12, reads_goal=True)
SHEETS = [corridor_sheet([1, 2]), corridor_sheet([1, 2, 3], number=1)]


def weights(spec: EnvironmentSpec, number: int) -> PolicySnapshot:
    torch.manual_seed(number)
    net = PolicyNet(spec, POLICY)
    torch.nn.init.orthogonal_(net.policy_head.weight, 3.0)
    return snapshot(net, (1, number))


def test_the_servers_logits_are_those_of_a_learner_that_reads_the_same_goals(tmp_path: Path) -> None:
    rows = split_rows(NUM_ENVS)
    parts = [
        make_environment(CORRIDOR, num_envs=part, run_seed=5, worker_index=0, first_env=first, policy=POLICY)
        for part, first in zip(rows, (0, rows[0]), strict=True)
    ]
    spec = parts[0].spec
    server = InferenceServer(tmp_path / "server", lambda: PolicyNet(spec, POLICY), spec, ACTORS, num_workers=1)
    thread = threading.Thread(target=server.serve)
    thread.start()
    client = CentralInference(tmp_path / "server", spec, NUM_ENVS, place=0, timeout_s=20)
    captions, keeper = CaptionTracker(NUM_ENVS), GoalKeeper(GoalsConfig(sources=["config"]), NUM_ENVS, seed=4)
    worker = RolloutWorker(SplitEnvironment(parts), client, captions, ACTORS, worker_id="0.0", seed=0, goals=keeper)
    try:
        for number, sheet in enumerate(SHEETS):
            given = weights(spec, number)
            server.load_goals(sheet.vectors)
            server.load(given)
            rollout, report = worker.collect(None, None, sheet)
            net = PolicyNet(spec, POLICY)
            net.load_state_dict({name: torch.from_numpy(array) for name, array in given.weights.items()})
            net.set_goal_vectors(sheet.vectors)
            ended = rollout.terminated | rollout.truncated
            resets = torch.from_numpy(np.concatenate([np.zeros_like(ended[:1]), ended[:-1]]))
            obs = {name: torch.from_numpy(array[:-1].copy()) for name, array in rollout.obs.items()}
            core = {name: torch.from_numpy(array) for name, array in rollout.core_state.items()}
            output = net(obs, core, resets)
            np.testing.assert_allclose(output.logits.detach(), rollout.behaviour_logits, atol=1e-5)
            assert rollout.obs[GOAL].max() == len(sheet.texts)
            assert report.goals is not None
            assert report.goals.given_achieved.sum() > 0
    finally:
        server.stop()
        thread.join(20)
        worker.close()
