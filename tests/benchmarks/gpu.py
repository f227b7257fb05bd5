"""Whether a CUDA device computes what the CPU does, and how fast it trains: learner, inference (CUDA graphs), judge,
then a run of two minutes.

Each part is held to the CPU's results in float32 and timed; then `nethack_score` is trained with everything on the
device. Without a device the first three run on the CPU, to show that they work, and nothing is trained. Prints one JSON
object; what a part says of itself is there even where another failed.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cluster.verbs.bench import CHECKOUT, commit, machine, packages

TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "learner": {"fp32": 0.05, "bf16": 0.2},
    "inference": {"fp32": 0.01, "bf16": 0.05},
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
    from reward_models.table import RewardTable

    config = _config(arguments)
    spec, rollouts = _rollouts(arguments, config)
    ids = np.unique(np.concatenate([rollout.caption_ids.ravel() for rollout in rollouts]))
    table = RewardTable.build(ids, np.random.default_rng(0).random(len(ids)), (0, 1))

    def train(device: str, precision: str) -> tuple[np.ndarray, np.ndarray, float]:
        settings = dataclasses.replace(config.learner, device=device, precision=precision)
        learner = Learner(spec, config.policy, settings, config.reward, run_epoch=0, seed=0)
        first, seconds = _flat(learner), []
        for rollout in rollouts:
            began = time.perf_counter()
            learner.step([dataclasses.replace(rollout, policy_version=learner.policy_version)], table)
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
    import torch

    from actors.inference import BatchedInference
    from actors.policy import PolicyNet, snapshot
    from configs.schema import ActorsConfig

    config = _config(arguments)
    spec, rollouts = _rollouts(arguments, config)

    def play(device: str, precision: str) -> tuple[np.ndarray, float]:
        torch.manual_seed(0)
        net, other = PolicyNet(spec, config.policy), PolicyNet(spec, config.policy)
        for each in (net, other):
            torch.nn.init.orthogonal_(
                each.policy_head.weight, 3.0
            )  # at first all actions are all but equal, which would hide a difference
        inference = BatchedInference(net, spec, arguments.envs, ActorsConfig(precision=precision, device=device))
        outputs, seconds = [], []
        for round_, rollout in enumerate(rollouts):
            if round_ == 1:
                inference.load(snapshot(other, (0, 1)))
                inference.reset(range(0, arguments.envs, 2))
            began = time.perf_counter()
            with inference.rollout(arguments.rollout_steps):
                for t in range(arguments.rollout_steps):
                    logits, values = inference.step({name: array[t] for name, array in rollout.obs.items()})
                    shifted = logits - logits.max(-1, keepdims=True)
                    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
                    outputs.append(np.concatenate([log_probabilities, values[:, None]], -1))
            seconds.append(time.perf_counter() - began)
        return np.stack(outputs), arguments.envs * arguments.rollout_steps / min(seconds)

    exact, _ = play("cpu", "fp32")
    differences, rates = {}, {}
    for precision in TOLERANCES["inference"]:
        found, rates[precision] = play(arguments.device, precision)
        differences[precision] = float(np.abs(found - exact).max())
    return {"differences": differences, "frames_per_s": rates}


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


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """`nethack_score` for some minutes with learner, inference and judge on the device; frames/s and labels/s of the
    second half."""
    on_ray = find_spec("ray") is not None
    with tempfile.TemporaryDirectory(prefix="delphi-gpu-") as folder:
        run = Path(folder) / "run"
        devices = [f"{part}.device={arguments.device}" for part in ("learner", "actors", "service")]
        shares = [
            "cluster.learner_gpus=0.5",
            "cluster.worker_gpus=0.25",
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
        command += [*arguments.settings]
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
    "engine": check_engine,
    "training": train,
}


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
        "--parts", nargs="+", choices=CHECKS, help="which (default: all; without a device all but training)"
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
    parser.add_argument("--captions", type=int, default=2000, metavar="N", help="judged for the rate (default: 2000)")
    parser.add_argument("--model", default="smollm2", help="the judge (default: smollm2)")
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of the run, before the preset's"
    )
    arguments = parser.parse_args(argv)
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    arguments.parts = arguments.parts or [name for name in CHECKS if name != "training" or arguments.device != "cpu"]
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device: got {arguments.device}, but torch {torch.__version__} sees no CUDA device here")
    for name, least in (
        ("envs", 1),
        ("train_envs", 1),
        ("rollout_steps", 1),
        ("rollouts", 2),
        ("captions", 0),
        ("seconds", 1),
    ):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, wanted at least {least}")
    result = measure(arguments)
    print(json.dumps(result, indent=None if arguments.json else 2))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
