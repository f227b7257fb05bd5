"""A small inference server and its workers, here or as processes of their own: `python -m
tests.actors.central.small_node serve|work SOCKET`, which play until they are killed; `serve` says `ready` at once,
`work` after each rollout."""

import sys
import threading
from pathlib import Path

import torch

from actors.captions import CaptionTracker
from actors.central.client import CentralInference
from actors.central.exchange import split_rows
from actors.central.server import InferenceServer
from actors.channels import Channels
from actors.environments.factory import make_environment
from actors.environments.split import SplitEnvironment
from actors.environments.vector import EnvironmentSpec, VectorEnvironment
from actors.inference import BatchedInference
from actors.policy import PolicyNet, PolicySnapshot, snapshot
from actors.worker import Inference, RolloutWorker
from configs.schema import ActorsConfig, EnvConfig, PolicyConfig

CORRIDOR = EnvConfig(id="tests.toy_environments:Corridor-v0", options={"slip": 0.2, "length": 5}, max_episode_steps=7)
NUM_ENVS, NUM_STEPS = 5, 12
ACTORS = ActorsConfig(envs_per_worker=NUM_ENVS, rollout_steps=NUM_STEPS, precision="fp32")


def make_net(spec: EnvironmentSpec, core: str = "lstm") -> PolicyNet:
    """A network of that core; with untrained, but different actions."""
    net = PolicyNet(spec, PolicyConfig(core=core, hidden_size=16, core_size=12))
    torch.nn.init.orthogonal_(net.policy_head.weight, 3.0)
    return net


def spec_of(env: EnvConfig) -> EnvironmentSpec:
    """What networks know of an environment."""
    made = make_environment(env, num_envs=1, run_seed=5, worker_index=0)
    made.close()
    return made.spec


def weights(number: int, core: str = "lstm", env: EnvConfig = CORRIDOR) -> PolicySnapshot:
    """Version (1, number)."""
    torch.manual_seed(number)
    return snapshot(make_net(spec_of(env), core), (1, number))


def make_server(
    path: Path, core: str = "lstm", env: EnvConfig = CORRIDOR, *, num_workers: int = 1, pads: bool | None = None
) -> InferenceServer:
    """A server without weights."""
    spec = spec_of(env)
    return InferenceServer(path, lambda: make_net(spec, core), spec, ACTORS, num_workers=num_workers, pads=pads)


def make_client(path: Path, env: EnvConfig = CORRIDOR, *, place: int = 0, timeout_s: float = 20.0) -> CentralInference:
    """The connection of a worker."""
    return CentralInference(path, spec_of(env), NUM_ENVS, place=place, timeout_s=timeout_s)


def central_worker(path: Path, index: int, env: EnvConfig = CORRIDOR, *, timeout_s: float = 20.0) -> RolloutWorker:
    """Worker `index` of the server at `path`."""
    rows = split_rows(NUM_ENVS)
    parts = [
        make_environment(env, num_envs=part, run_seed=5, worker_index=index, first_env=first)
        for part, first in zip(rows, (0, rows[0]), strict=True)
    ]
    client = make_client(path, env, place=index, timeout_s=timeout_s)
    return make_worker(SplitEnvironment(parts), client, index)


def worker_alone(index: int, core: str = "lstm", env: EnvConfig = CORRIDOR) -> RolloutWorker:
    """The same worker, which computes the policy itself."""
    vector = make_environment(env, num_envs=NUM_ENVS, run_seed=5, worker_index=index)
    inference = BatchedInference(make_net(vector.spec, core), vector.spec, NUM_ENVS, ACTORS)
    return make_worker(vector, inference, index)


def make_worker(env: SplitEnvironment | VectorEnvironment, inference: Inference, index: int) -> RolloutWorker:
    """A worker; it has all channels where states are described, and features where there are any."""
    reads = () if env.states is None else ("state", "change", "history")
    num_features = len(env.spec.features)
    reads += ("features",) if num_features else ()
    channels = Channels(reads, NUM_ENVS, env.spec.action_names, num_features=num_features)
    worker_id, captions = f"{index}.0", CaptionTracker(NUM_ENVS)
    return RolloutWorker(env, inference, captions, ACTORS, worker_id=worker_id, seed=index, channels=channels)


class SmallNode:
    """A server in a thread; its workers are closed with it."""

    def __init__(self, path: Path, core: str = "lstm", env: EnvConfig = CORRIDOR, **options: int) -> None:
        self.path, self.core, self.env = path, core, env
        self.server = make_server(path, core, env, **options)
        self.workers: list[RolloutWorker] = []
        self._thread = threading.Thread(target=self.server.serve)
        self._thread.start()

    def worker(self, index: int, **options: float) -> RolloutWorker:
        """One more worker."""
        self.workers.append(central_worker(self.path, index, self.env, **options))
        return self.workers[-1]

    def load(self, number: int) -> PolicySnapshot:
        """Give the server version (1, number)."""
        loaded = weights(number, self.core, self.env)
        self.server.load(loaded)
        return loaded

    def close(self) -> None:
        """End the server; AssertionError where it does not end."""
        self.server.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()
        for worker in self.workers:
            worker.close()


def main(role: str, path: str) -> None:
    torch.set_num_threads(1)
    if role == "serve":
        server = make_server(Path(path), num_workers=2)
        server.load(weights(0))
        print("ready", flush=True)
        server.serve()
    worker = central_worker(Path(path), 1)
    while True:
        worker.collect(None, None)
        print("ready", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
