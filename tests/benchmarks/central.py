"""Frames/s of the policy for several worker processes that share one device: each with its own policy, or all with one
inference server.

Each process replays the observations of a recorded rollout, rollout by rollout, without stepping environments.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np

from actors.central.client import CentralInference
from actors.central.exchange import split_rows
from actors.environments.vector import ArraySpec, EnvironmentSpec
from cluster.verbs.bench import CHECKOUT

TIMEOUT_S = 120.0
"""For one answer: a device's first takes long."""


def parts_of(num_envs: int, is_central: bool) -> list[slice]:
    """The rows of the parts in which environments are asked about."""
    sizes = split_rows(num_envs) if is_central else (num_envs,)
    return [slice(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def replay(
    inference: Any, obs: Mapping[str, np.ndarray], parts: Sequence[slice], take: Callable[..., None] | None = None
) -> None:
    """One rollout of observations name -> [T, B, ...]; `take` gets step, rows, logits and values."""
    num_steps = len(next(iter(obs.values())))
    with inference.rollout(num_steps):
        for part, rows in enumerate(parts):
            inference.ask(part, {name: array[0, rows] for name, array in obs.items()})
        for t, (part, rows) in product(range(num_steps), enumerate(parts)):
            answer = inference.answer(part)
            if take is not None:
                take(t, rows, *answer)
            if t + 1 < num_steps:
                inference.ask(part, {name: array[t + 1, rows] for name, array in obs.items()})


@contextmanager
def serving(
    config: Any, spec: EnvironmentSpec, weights: Any, num_workers: int, path: Path, **settings: str
) -> Iterator[Any]:
    """An inference server with these weights in a thread, which reports what ended it on standard error."""
    import dataclasses

    from actors.central.server import InferenceServer
    from actors.policy import PolicyNet

    actors = dataclasses.replace(config.actors, **settings)
    server = InferenceServer(path, lambda: PolicyNet(spec, config.policy), spec, actors, num_workers=num_workers)
    server.load(weights)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def frames_per_s(
    config: Any,
    spec: EnvironmentSpec,
    weights: Any,
    obs: Mapping[str, np.ndarray],
    *,
    num_workers: int,
    seconds: float,
    is_central: bool,
    device: str,
    precision: str,
) -> float:
    """Of all processes together, over `seconds` in which each has begun and none has ended."""
    with tempfile.TemporaryDirectory(prefix="delphi-") as folder:
        file, path = Path(folder) / "obs.npz", Path(folder) / "socket"
        np.savez(file, **obs)
        entries = {
            name: [entry.shape, entry.dtype.str, entry.num_values, entry.is_text]
            for name, entry in spec.observations.items()
        }
        order = {"obs": str(file), "seconds": seconds, "device": device, "precision": precision}
        order |= {"spec": entries, "num_actions": spec.num_actions, "settings": _settings(config)}
        if not is_central:
            return _run(num_workers, order)
        with serving(config, spec, weights, num_workers, path, device=device, precision=precision):
            return _run(num_workers, {**order, "path": str(path)})


def _settings(config: Any) -> list[str]:
    from configs.loading import to_dict

    return [f"policy.{name}={json.dumps(value)}" for name, value in to_dict(config)["policy"].items()]


def _run(num_workers: int, order: Mapping[str, Any]) -> float:
    """Start all, let them begin together, and add up what they report."""
    command = [sys.executable, "-m", "tests.benchmarks.central"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=CHECKOUT, **pipes) for _ in range(num_workers)]
    try:
        for place, process in enumerate(processes):
            _tell(process, json.dumps({**order, "place": place}))
        for process in processes:
            _heard(process)
        for process in processes:
            _tell(process, "go")
        return sum(float(_heard(process)) for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _tell(process: subprocess.Popen, line: str) -> None:
    process.stdin.write(line + "\n")  # type: ignore[union-attr]
    process.stdin.flush()  # type: ignore[union-attr]


def _heard(process: subprocess.Popen) -> str:
    line = process.stdout.readline()  # type: ignore[union-attr]
    if not line:
        raise RuntimeError("a process that asks for the policy has ended; its error is above")
    return line


def work() -> None:
    """One process: it obeys an order on standard input, says when it is ready, and after `go` its frames/s."""
    order = json.loads(sys.stdin.readline())
    with np.load(order["obs"]) as file:
        obs = dict(file)
    num_steps, num_envs = next(iter(obs.values())).shape[:2]
    is_central = "path" in order
    inference = _client(order, num_envs) if is_central else _own(order, num_envs)
    parts = parts_of(num_envs, is_central)
    replay(inference, obs, parts)
    print("ready", flush=True)
    sys.stdin.readline()
    began, rollouts = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < order["seconds"]:
        replay(inference, obs, parts)
        rollouts += 1
    print(rollouts * num_steps * num_envs / passed, flush=True)
    sys.stdin.readline()  # the others are still at work, at the same load


def _spec(order: Mapping[str, Any]) -> EnvironmentSpec:
    entries = {
        name: ArraySpec(shape=tuple(shape), dtype=np.dtype(dtype), num_values=num_values, is_text=is_text)
        for name, (shape, dtype, num_values, is_text) in order["spec"].items()
    }
    return EnvironmentSpec(observations=entries, num_actions=order["num_actions"])


def _client(order: Mapping[str, Any], num_envs: int) -> CentralInference:
    path = Path(order["path"])
    return CentralInference(path, _spec(order), num_envs, place=order["place"], timeout_s=TIMEOUT_S)


def _own(order: Mapping[str, Any], num_envs: int) -> Any:
    import torch

    from actors.inference import BatchedInference
    from actors.policy import PolicyNet
    from configs.loading import load_config
    from configs.schema import ActorsConfig

    torch.set_num_threads(1)
    spec = _spec(order)
    net = PolicyNet(spec, load_config(preset="nethack_score", overrides=order["settings"]).policy)
    settings = ActorsConfig(device=order["device"], precision=order["precision"])
    return BatchedInference(net, spec, num_envs, settings)


if __name__ == "__main__":
    work()
