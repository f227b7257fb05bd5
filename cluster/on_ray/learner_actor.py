"""The learner actor: the training loop in a process of its own.

Invariant: workers and annotator are its children and die with it; control calls have their own concurrency group, so
they are answered while it trains.
"""

from pathlib import Path
from typing import Any

import ray
import torch

from actors.environments.vector import EnvironmentSpec
from actors.policy import bound_kept_kernels
from cluster.loop import TrainingLoop
from cluster.on_ray.annotation import RayAnnotation
from cluster.on_ray.failures import this_process
from cluster.on_ray.nodes import enter_run
from cluster.on_ray.placement import Request
from cluster.on_ray.workers import RayWorkers
from cluster.run.directory import RunDirectory
from configs.schema import RunConfig

KEPT_KERNELS = 16
"""Fewer than an update uses: 110 MB less, and no growth with new shapes, for updates that take 4 % longer."""


@ray.remote(max_restarts=0, concurrency_groups={"control": 2})  # type: ignore[call-overload]
class LearnerActor:
    """The training loop, which owns workers and annotator."""

    def __init__(
        self, config: RunConfig, spec: EnvironmentSpec, run_epoch: int, requests: dict[str, Request], nonce: str
    ) -> None:
        bound_kept_kernels(KEPT_KERNELS)
        if config.learner.torch_threads:
            torch.set_num_threads(config.learner.torch_threads)
        RunDirectory(Path(config.run_dir)).check_nonce(nonce)
        self._run = enter_run(config)
        self._config, self._spec, self._run_epoch, self._requests = config, spec, run_epoch, requests
        self._loop: TrainingLoop | None = None
        self._annotation: RayAnnotation | None = None
        self._stop_requested = False

    def run(self) -> dict[str, Any]:
        """Train to the end or to `stop`; the summary."""
        self._annotation = annotation = RayAnnotation(
            self._config, self._run_epoch, self._requests.get("annotator"), self._requests.get("replica")
        )
        workers = RayWorkers(self._config, self._spec, self._run_epoch, self._requests["worker"], annotation)
        try:
            self._loop = TrainingLoop(self._config, self._run, self._run_epoch, workers, annotation)
            if self._stop_requested:
                self._loop.stop()
            return self._loop.run()
        finally:
            workers.close()
            annotation.close()

    @ray.method(concurrency_group="control")
    def progress(self) -> dict[str, Any]:
        """The newest metrics, and what is waited for; before training only the process and what is waited for."""
        line = {"process": this_process(), **(self._loop.progress() if self._loop is not None else {})}
        annotation = self._annotation.waiting if self._annotation is not None else None
        return {**line, "waiting": "; ".join(filter(None, (line.get("waiting"), annotation))) or None}

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Checkpoint and end after the update in progress."""
        self._stop_requested = True
        if self._loop is not None:
            self._loop.stop()
