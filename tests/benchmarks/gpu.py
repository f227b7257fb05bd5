"""Whether a CUDA device computes what the CPU does, and how fast it trains: learner, inference (CUDA graphs; in each
worker and central), judge, then two runs of two minutes.

Each part is held to the CPU's results in float32 and timed; then `nethack_score` is trained with everything on the
device, by one worker, and by all that the cores allow with central inference. Without a device all but the training
runs on the CPU, to show that it works. Prints one JSON object; what a part says of itself is there even where another
failed.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cluster.verbs.bench import CHECKOUT, commit, machine, packages
from tests.benchmarks.central import TIMEOUT_S, frames_per_s, parts_of, replay, serving

TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "learner": {"fp32": 0.05, "bf16": 0.2},
    "inference": {"fp32": 0.01, "bf16": 0.05},
    "central": {"fp32": 0.01, "bf16": 0.05},
    "engine": {"float32": 0.001, "bfloat16": 0.05},
}
"""Largest difference that rounding explains: of the learner's way from its first weights, as a share of its length
(Adam divides by the gradient's own size, so what is next to nothing may go either way); of log-probabilities and
values; of the judge's probabilities."""
RUBRIC = "nethack_progress"
START_S = 90.0
"""What the run may take to start and to end, besides training."""


def check_learner(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same updates on the CPU and on the device."""
    from learner.update import Learner
    from reward_models.published import PublishedReward
    from reward_models.table import RewardTable

    config = _config(arguments)
    spec, rollouts = _rollouts(arguments, config)
    ids = np.unique(np.concatenate([rollout.caption_ids.ravel() for rollout in rollouts]))
    reward = PublishedReward.of(RewardTable.build(ids, np.random.default_rng(0).random(len(ids)), (0, 1)))

    def train(device: str, precision: str) -> tuple[np.ndarray, np.ndarray, float]:
        settings = dataclasses.replace(config.learner, device=device, precision=precision)
        learner = Learner(spec, config.policy, settings, config.reward, run_epoch=0, seed=0)
        first, seconds = _flat(learner), []
        for rollout in rollouts:
            began = time.perf_counter()
            learner.step([dataclasses.replace(rollout, policy_version=learner.policy_version)], reward)
            seconds.append(time.perf_counter() - began)
        return first, _flat(learner), rollouts[0].num_steps / min(seconds)

    first, exact, _ = train("cpu", "fp32")
    differences, rates = {}, {}
    for precision in TOLERANCES["learner"]:
        _, last, rates[precision] = train(arguments.device, precision)
        differences[precision] = float(np.linalg.norm(last - exact) / np.linalg.norm(exact - first))
    return {"differences": differences, "frames_per_s": rates}


def check_inference(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same games' observations, stepped on the CPU and on the device, also after new weights and after a reset."""
    config = _config(arguments)
    spec, rollouts = _rollouts(arguments, config)
    exact, _ = _play_alone(arguments, config, spec, rollouts, "cpu", "fp32")
    differences, rates = {}, {}
    for precision in TOLERANCES["inference"]:
        found, rates[precision] = _play_alone(arguments, config, spec, rollouts, arguments.device, precision)
        differences[precision] = float(np.abs(found - exact).max())
    return {"differences": differences, "frames_per_s": rates}


def check_central(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same, asked of an inference server by two workers at once; and the frames/s of as many worker processes as
    there are cores, with central inference and each with its own on the same device."""
    from actors.central.client import CentralInference

    config = _config(arguments)
    spec, rollouts = _rollouts(arguments, config)
    first, second = _weights(config, spec)
    exact, _ = _play_alone(arguments, config, spec, rollouts, "cpu", "fp32")
    differences: dict[str, float] = {}
    rates: dict[str, dict[str, float]] = {"central": {}, "worker": {}}
    for precision in TOLERANCES["central"]:
        where = {"device": arguments.device, "precision": precision}
        with tempfile.TemporaryDirectory(prefix="delphi-") as folder, ThreadPoolExecutor(2) as pool:
            path = Path(folder) / "socket"
            both = threading.Barrier(2, timeout=TIMEOUT_S)
            with serving(config, spec, first, 2, path, **where) as server:

                def change(server: Any = server, both: threading.Barrier = both) -> None:
                    both.wait()  # until no rollout of the first version is still to begin
                    server.load(second)

                clients = [
                    CentralInference(path, spec, arguments.envs, place=place, timeout_s=TIMEOUT_S) for place in (0, 1)
                ]
                playing = partial(_play, arguments, rollouts, change=change, is_central=True)
                differences[precision] = max(
                    float(np.abs(outputs - exact).max()) for outputs, _ in pool.map(playing, clients)
                )
                for client in clients:
                    client.close()
        obs = {name: array[:-1] for name, array in rollouts[0].obs.items()}
        load = {"num_workers": arguments.processes, "seconds": arguments.rate_seconds, **where}
        for way, of_way in rates.items():
            of_way[precision] = frames_per_s(config, spec, first, obs, is_central=way == "central", **load)
    return {"differences": differences, "frames_per_s": rates, "processes": arguments.processes}


def _weights(config: Any, spec: Any) -> list[Any]:
    """Two versions, (0, 0) and (0, 1)."""
    import torch

    from actors.policy import PolicyNet, snapshot

    torch.manual_seed(0)
    nets = [PolicyNet(spec, config.policy) for _ in range(2)]
    for net in nets:
        # At first all actions are all but equal, which would hide a difference.
        torch.nn.init.orthogonal_(net.policy_head.weight, 3.0)
    return [snapshot(net, (0, number)) for number, net in enumerate(nets)]


def _play_alone(
    arguments: argparse.Namespace, config: Any, spec: Any, rollouts: list[Any], device: str, precision: str
) -> tuple[np.ndarray, float]:
    from actors.inference import BatchedInference
    from actors.policy import PolicyNet
    from configs.schema import ActorsConfig

    first, second = _weights(config, spec)
    settings = ActorsConfig(precision=precision, device=device)
    inference = BatchedInference(PolicyNet(spec, config.policy), spec, arguments.envs, settings)
    inference.load(first)
    return _play(arguments, rollouts, inference, change=lambda: inference.load(second), is_central=False)


def _play(
    arguments: argparse.Namespace, rollouts: list[Any], inference: Any, *, change: Callable[[], Any], is_central: bool
) -> tuple[np.ndarray, float]:
    """Log-probabilities and values of all steps [steps, B, A + 1], and frames/s; after the first rollout the weights
    `change`, and every second environment starts again."""
    parts, steps, seconds = parts_of(arguments.envs, is_central), arguments.rollout_steps, []
    outputs: np.ndarray | None = None

    def take(t: int, rows: slice, logits: np.ndarray, values: np.ndarray) -> None:
        nonlocal outputs
        if outputs is None:
            outputs = np.full((steps * len(rollouts), arguments.envs, logits.shape[-1] + 1), np.nan, np.float32)
        shifted = logits - logits.max(-1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        outputs[round_ * steps + t, rows] = np.concatenate([log_probabilities, values[:, None]], -1)

    for round_, rollout in enumerate(rollouts):
        if round_ == 1:
            change()
            for rows in parts:
                inference.reset([row for row in range(rows.start, rows.stop) if row % 2 == 0])
        began = time.perf_counter()
        replay(inference, {name: array[:-1] for name, array in rollout.obs.items()}, parts, take)
        seconds.append(time.perf_counter() - began)
    assert outputs is not None
    return outputs, arguments.envs * steps / min(seconds)


def check_engine(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same captions judged on the CPU and on the device."""
    from configs.annotation_schema import ServiceConfig
    from llm_server.engines.building import build_engine
    from llm_server.rubrics.loading import load_rubric

    rubric = load_rubric(RUBRIC)
    captions = [
        f"You {verb} the {thing}!"
        for verb in ("kill", "see", "hit", "miss")
        for thing in ("newt", "jackal", "door", "lichen")
    ]

    def judge(device: str, dtype: str, texts: Sequence[str]) -> tuple[np.ndarray, float]:
        engine = build_engine(ServiceConfig(model=arguments.model, device=device, dtype=dtype, batch_size=32), rubric)
        engine.score(texts[:1])
        began = time.perf_counter()
        answers = np.array([score.probability for score in engine.score(texts)])
        return answers, len(texts) / (time.perf_counter() - began)

    exact, _ = judge("cpu", "float32", captions)
    many = [*captions, *(f"You see here {number} gold pieces." for number in range(arguments.captions))]
    differences, rates = {}, {}
    for dtype in TOLERANCES["engine"]:
        found, rates[dtype] = judge(arguments.device, dtype, many)
        differences[dtype] = float(np.abs(found[: len(captions)] - exact).max())
    return {"differences": differences, "labels_per_s": rates, "model": arguments.model}


def train_central(arguments: argparse.Namespace) -> dict[str, Any]:
    """`train` by as many workers as the cores but two allow, with central inference and a batch of all workers."""
    num_workers = max(1, arguments.processes - 2)
    settings = [f"actors.num_workers={num_workers}", f"learner.rollouts_per_batch={num_workers}"]
    return train(arguments, "actors.inference=central", *settings)


def train(arguments: argparse.Namespace, *settings: str) -> dict[str, Any]:
    """`nethack_score` for some minutes with learner, inference and judge on the device; frames/s and labels/s of the
    second half."""
    on_ray = find_spec("ray") is not None
    if settings and not on_ray:
        raise RuntimeError("Ray is not installed: there are no inference actors without it")
    with tempfile.TemporaryDirectory(prefix="delphi-gpu-") as folder:
        run = Path(folder) / "run"
        devices = [f"{part}.device={arguments.device}" for part in ("learner", "actors", "service")]
        shares = [
            "cluster.learner_gpus=0.5",
            f"cluster.{'inference' if settings else 'worker'}_gpus=0.25",
            "cluster.service_gpus=0.25",
            "cluster.dashboard=false",
        ]
        command = [
            sys.executable,
            "-m",
            "cluster.train",
            "--preset",
            "nethack_score",
            f"run_dir={run}",
            "logging.console=plain",
        ]
        command += [
            *devices,
            f"cluster.mode={'local' if on_ray else 'inline'}",
            *(shares if on_ray and arguments.device != "cpu" else ()),
        ]
        command += [
            f"max_time_s={arguments.seconds:g}",
            "total_env_steps=1000000000",
            "evaluation.at_end=false",
            "logging.tensorboard=false",
        ]
        command += [
            f"actors.envs_per_worker={arguments.train_envs}",
            f"service.model={arguments.model}",
            "service.store=memory",
        ]
        command += [*settings, *arguments.settings]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])}
        output = Path(folder) / "output.txt"
        with output.open("w") as file:
            process = subprocess.Popen(command, cwd=CHECKOUT, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            code = process.wait(arguments.seconds + START_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(60)
            raise RuntimeError(
                f"the run did not end within {START_S:.0f} s of its time; its last lines: {_tail(output)}"
            ) from None
        if code:
            raise RuntimeError(f"the run ended with exit code {code}; its last lines: {_tail(output)}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    half = next(line for line in lines if line["time_s"] >= lines[-1]["time_s"] / 2)
    last = lines[-1]
    seconds = max(last["time_s"] - half["time_s"], 1e-9)
    names = (
        "learner_train_fraction",
        "learner_wait_fraction",
        "worker_env_fraction",
        "worker_inference_fraction",
        "policy_lag_mean",
        "annotations_pending",
    )
    return {
        "frames_per_s": (last["env_steps"] - half["env_steps"]) / seconds,
        "labels_per_s": ((last["annotations_total"] or 0) - (half["annotations_total"] or 0)) / seconds,
        "env_steps": last["env_steps"],
        "annotations_total": last["annotations_total"],
        "updates_skipped_nonfinite": last["updates_skipped_nonfinite"],
        "mode": "local" if on_ray else "inline",
        **{name: last[name] for name in names},
    }


CHECKS: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "learner": check_learner,
    "inference": check_inference,
    "central": check_central,
    "engine": check_engine,
    "training": train,
    "training_central": train_central,
}
TRAINING = ("training", "training_central")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts, one after the other, as JSON values. `ok` is whether each ran, and gave the CPU's results where it is
    held to them."""
    import torch

    device = None
    if arguments.device != "cpu":
        device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    parts = {name: _part(name, arguments) for name in arguments.parts}
    ok = all(part["ok"] for part in parts.values())
    where = {
        "machine": machine(),
        "commit": commit(),
        "packages": packages(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    return {"benchmark": "gpu", "ok": ok, "device": device, **parts, **where}


def _part(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    try:
        found = CHECKS[name](arguments)
        limits = TOLERANCES.get(name, {})
        found["ok"] = all(found["differences"][number] <= limit for number, limit in limits.items())
        if limits:
            found["tolerances"] = dict(limits)
    except Exception as error:  # the other parts are worth their minutes all the same
        found = {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    found["seconds"] = round(time.monotonic() - began, 1)
    print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def _config(arguments: argparse.Namespace) -> Any:
    from configs.loading import load_config

    sizes = [
        f"actors.envs_per_worker={arguments.envs}",
        f"actors.rollout_steps={arguments.rollout_steps}",
        "actors.precision=fp32",
    ]
    # One step per update: what rounding does to one is not multiplied by the next.
    return load_config(
        preset="nethack_score", overrides=[*sizes, "learner.epochs=1", "learner.minibatches=1", *arguments.settings]
    )


def _rollouts(arguments: argparse.Namespace, config: Any) -> tuple[Any, list[Any]]:
    """What a network must know of the environment; and rollouts of real games, collected on the CPU with the first
    weights."""
    import torch

    from actors.policy import PolicyNet, snapshot
    from cluster.wiring import build_worker

    worker = build_worker(config, 0, incarnation="0", stream="train")
    try:
        torch.manual_seed(0)
        weights = snapshot(PolicyNet(worker.env.spec, config.policy), (0, 0))
        return worker.env.spec, [worker.collect(weights, None)[0] for _ in range(arguments.rollouts)]
    finally:
        worker.close()


def _flat(learner: Any) -> np.ndarray:
    return np.concatenate([array.ravel() for _, array in sorted(learner.snapshot().weights.items())]).astype(np.float64)


def _tail(output: Path) -> str:
    return " / ".join(output.read_text(errors="replace").splitlines()[-8:])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 where a part failed or disagrees with the CPU, 2 where the command is wrong."""
    import torch

    parser = argparse.ArgumentParser(prog="delphi bench gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of several")
    parser.add_argument("--device", default="", help="cuda, cuda:N or cpu (default: cuda where there is a device)")
    parser.add_argument(
        "--parts", nargs="+", choices=CHECKS, help="which (default: all; without a device none of training)"
    )
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="of training (default: 120)")
    parser.add_argument("--envs", type=int, default=64, metavar="N", help="environments of a rollout (default: 64)")
    parser.add_argument(
        "--train-envs", type=int, default=128, metavar="N", help="environments of the run's worker (default: 128)"
    )
    parser.add_argument("--rollout-steps", type=int, default=32, metavar="N", help="steps of a rollout (default: 32)")
    parser.add_argument(
        "--rollouts", type=int, default=4, metavar="N", help="rollouts, and updates (default: 4; at least 2)"
    )
    parser.add_argument(
        "--processes", type=int, default=0, metavar="N", help="worker processes that share the device (default: cores)"
    )
    parser.add_argument(
        "--rate-seconds", type=float, default=5.0, metavar="S", help="of each rate of theirs (default: 5)"
    )
    parser.add_argument("--captions", type=int, default=2000, metavar="N", help="judged for the rate (default: 2000)")
    parser.add_argument("--model", default="smollm2", help="the judge (default: smollm2)")
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of the run, before the preset's"
    )
    arguments = parser.parse_args(argv)
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    arguments.parts = arguments.parts or [name for name in CHECKS if name not in TRAINING or arguments.device != "cpu"]
    arguments.processes = arguments.processes or min(16, os.cpu_count() or 1)
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device: got {arguments.device}, but torch {torch.__version__} sees no CUDA device here")
    for name, least in (
        ("envs", 1),
        ("train_envs", 1),
        ("rollout_steps", 1),
        ("rollouts", 2),
        ("captions", 0),
        ("processes", 1),
        ("seconds", 1),
    ):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, wanted at least {least}")
    result = measure(arguments)
    print(json.dumps(result, indent=None if arguments.json else 2))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
