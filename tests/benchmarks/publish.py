"""What publishing one version of the weights costs: float32 against bf16 on the wire, from the learner's copy to a
worker's network.

Publishing is what the learner does after each update (`snapshot`, one `ray.put`); pulling is what a worker does before
its next rollout (the snapshot comes as an argument, `load_weights`). The network is the reference network unless
`policy.*` keys say otherwise.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.policy import PolicyNet, PolicySnapshot, load_weights, snapshot
from cluster.run.temporary import use_private_token
from cluster.verbs.bench import print_report, report
from configs.loading import load_config
from configs.schema import RunConfig

OBJECT_STORE_BYTES = 500_000_000
WARM_UP = 3
STEPS = ("snapshot", "put", "pull", "load")
"""`pull`: the whole call to the worker without the loading in it, so the actor call itself too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 measured, 2 the command was wrong."""
    parser = argparse.ArgumentParser(prog="delphi bench publish", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--repetitions", type=int, default=50, metavar="N", help="versions published in each form (default: 50)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the network (policy.*) and of env.id"
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.repetitions < 1:
        parser.error(f"--repetitions: got {arguments.repetitions}, wanted at least 1")
    config = load_config(overrides=arguments.overrides)
    with tempfile.TemporaryDirectory(prefix="delphi-publish-", dir="/tmp") as folder:
        taken, num_bytes = measure(config, arguments.repetitions, Path(folder))
    result = summarise(taken, num_bytes, {"repetitions": arguments.repetitions, "overrides": arguments.overrides})
    print_report(result, arguments.json)
    if not arguments.json:
        for form, steps in result["ms"].items():
            print(
                f"{form}: {num_bytes[form]:,} bytes; ms: " + ", ".join(f"{step} {ms:.2f}" for step, ms in steps.items())
            )
    return 0


def measure(
    config: RunConfig, repetitions: int, folder: Path
) -> tuple[dict[str, dict[str, list[float]]], dict[str, int]]:
    """Milliseconds by form and step, the forms in turns, and the bytes of each form."""
    use_private_token(folder)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    net = make_network(config)
    forms: dict[str, tuple[Callable[[], PolicySnapshot], Callable[[PolicyNet, PolicySnapshot], None]]] = {
        "float32": (lambda: snapshot(net, (1, 1)), lambda own, taken: load_weights(own, taken.weights)),
        "bf16": (lambda: to_bf16(net), load_bf16),
    }
    taken: dict[str, dict[str, list[float]]] = {form: {step: [] for step in STEPS} for form in forms}
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        _temp_dir=str(folder / "ray"),
    )
    try:
        worker: Any = ray.remote(num_cpus=0)(Puller).remote(config)
        for repetition in range(-WARM_UP, repetitions):
            for form, (pack, load) in forms.items():
                times = [time.perf_counter()]
                packed = pack()
                times.append(time.perf_counter())
                reference = ray.put(packed)
                times.append(time.perf_counter())
                load_s = ray.get(worker.load.remote(reference, load))
                times.append(time.perf_counter())
                if repetition >= 0:
                    pack_s, put_s, pull_s = np.diff(times)
                    for step, seconds in zip(STEPS, (pack_s, put_s, pull_s - load_s, load_s), strict=True):
                        taken[form][step].append(1e3 * float(seconds))
    finally:
        ray.shutdown()
    return taken, {form: sum(array.nbytes for array in pack().weights.values()) for form, (pack, _) in forms.items()}


class Puller:
    """A worker's side, in a process of its own."""

    def __init__(self, config: RunConfig) -> None:
        import torch

        torch.set_num_threads(config.actors.torch_threads)
        self._net = make_network(config)

    def load(self, packed: PolicySnapshot, load: Callable[[PolicyNet, PolicySnapshot], None]) -> float:
        """Seconds of loading."""
        started = time.perf_counter()
        load(self._net, packed)
        return time.perf_counter() - started


def make_network(config: RunConfig) -> PolicyNet:
    """The network of a configuration, with first weights."""
    from actors.environments.factory import make_environment

    env = make_environment(config.env, num_envs=1, run_seed=0, worker_index=0, policy=config.policy)
    env.close()
    return PolicyNet(env.spec, config.policy)


def to_bf16(net: PolicyNet) -> PolicySnapshot:
    """A snapshot with weights rounded to bf16, as the int16 that numpy has for it."""
    import torch

    weights = {
        name: tensor.detach().to(torch.bfloat16).view(torch.int16).cpu().numpy()
        for name, tensor in net.state_dict().items()
    }
    return PolicySnapshot(weights=weights, policy_version=(1, 1))


def load_bf16(net: PolicyNet, packed: PolicySnapshot) -> None:
    """Copy what `to_bf16` made into the network."""
    import torch

    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            tensor.copy_(torch.from_numpy(np.array(packed.weights[name])).view(torch.bfloat16))


def summarise(
    taken: dict[str, dict[str, list[float]]], num_bytes: dict[str, int], settings: dict[str, Any]
) -> dict[str, Any]:
    """The report: milliseconds of a whole publication, float32 to bf16, and the medians of its steps."""
    measured = {form: [sum(steps) for steps in zip(*times.values(), strict=True)] for form, times in taken.items()}
    return report(
        "publish",
        measured=measured,
        unit="ms per version, to one worker",
        ratio_of=("float32", "bf16"),
        settings=settings,
        bytes=num_bytes,
        ms={form: {step: statistics.median(values) for step, values in times.items()} for form, times in taken.items()},
    )


if __name__ == "__main__":
    sys.exit(main())
