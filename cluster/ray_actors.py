"""The three Ray actors: thin shells that build a part in its own process and forward calls to it.

Invariant: no logic that the inline mode lacks; control calls of the learner have a concurrency group of their own, so they
are answered while it trains.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from actors.environment import EnvironmentSpec
from actors.policy import PolicySnapshot
from actors.rollout import Acknowledgement, CaptionReport, Rollout, Version
from cluster import temporary
from cluster.logs import log_to_file
from cluster.placement import Request
from cluster.run_directory import RunDirectory
from cluster.wiring import build_pipeline, build_worker
from configs.schema import RunConfig
from reward_models.table import RewardTable
from reward_models.training import RewardedCaption


@ray.remote(max_restarts=0)
class WorkerActor:
    """A rollout worker."""

    def __init__(self, config: RunConfig, index: int, incarnation: str) -> None:
        import torch

        torch.set_num_threads(config.actors.torch_threads)
        temporary.enter(config.run_dir)
        log_to_file(RunDirectory(Path(config.run_dir)).log)
        self._worker = build_worker(config, index, incarnation=incarnation, stream=f"train-{incarnation}")

    @ray.method(num_returns=2)
    def collect(self, snapshot: PolicySnapshot, acknowledgement: Acknowledgement | None) -> tuple[Rollout, CaptionReport]:
        """One rollout and its caption report."""
        return self._worker.collect(snapshot, acknowledgement)

    def close(self) -> None:
        """Release the environments, so that their temporary files go."""
        self._worker.close()


@ray.remote(max_restarts=0)
class AnnotatorActor:
    """Annotator, reward model and, unless an address was given, the annotation service as a child process."""

    def __init__(self, config: RunConfig, run_epoch: int, state: Mapping[str, Any] | None) -> None:
        temporary.enter(config.run_dir)
        run = RunDirectory(Path(config.run_dir))
        log_to_file(run.log)
        self._pipeline = build_pipeline(config, run, run_epoch)
        if state is not None:
            self._pipeline.load_state_dict(state)
        self._pipeline.start()

    def report(self, report: CaptionReport, env_steps: int) -> Acknowledgement:
        """Take a worker's captions into the book."""
        book_epoch, sequence_number = self._pipeline.report(
            report.texts, report.counts, report.worker_id, report.sequence_number, env_steps
        )
        return Acknowledgement(book_epoch=book_epoch, sequence_number=sequence_number)

    def update(self, known: Version | None) -> tuple[RewardTable | None, dict[str, float | None], str | None]:
        """The newest table, or None where `known` is the newest; the figures of annotation; and its problem."""
        table = self._pipeline.latest_table()
        return (table if table.reward_version != known else None), dict(self._pipeline.metrics()), self._pipeline.problem

    def top_rewarded(self, n: int, min_count: int) -> list[RewardedCaption]:
        """See `cluster.parts.Annotation`."""
        return list(self._pipeline.top_rewarded(n, min_count))

    def state_dict(self) -> dict[str, Any]:
        """See `cluster.parts.Annotation`."""
        return self._pipeline.state_dict()

    def close(self) -> None:
        """Stop the service and the threads."""
        self._pipeline.close()


@ray.remote(max_restarts=0, concurrency_groups={"control": 2})  # type: ignore[call-overload]
class LearnerActor:
    """The training loop, with the workers and the annotator as its own children: they die with it."""

    def __init__(self, config: RunConfig, spec: EnvironmentSpec, run_epoch: int, requests: dict[str, Request], nonce: str) -> None:
        import torch

        if config.learner.torch_threads:
            torch.set_num_threads(config.learner.torch_threads)
        run = RunDirectory(Path(config.run_dir))
        run.check_nonce(nonce)
        temporary.enter(config.run_dir)
        log_to_file(run.log)
        self._config, self._spec, self._run, self._run_epoch, self._requests = config, spec, run, run_epoch, requests
        self._loop: Any = None
        self._stop_requested = False

    def run(self) -> dict[str, Any]:
        """Train to the end or to `stop`; the summary."""
        from cluster.loop import TrainingLoop
        from cluster.ray_annotation import RayAnnotation
        from cluster.ray_workers import RayWorkers

        annotation = RayAnnotation(self._config, self._run_epoch, self._requests.get("annotator"))
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
        """The newest figures; only the process id before training began."""
        return {"pid": os.getpid(), **(self._loop.progress() if self._loop is not None else {})}

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Checkpoint and end after the update in progress."""
        self._stop_requested = True
        if self._loop is not None:
            self._loop.stop()
