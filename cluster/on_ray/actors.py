"""The worker and annotator actors: thin wrappers that build a component in its own process and forward calls to it.

Invariant: no logic that the inline mode lacks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from actors.policy import PolicySnapshot, bound_kept_kernels
from actors.rollout import Acknowledgement, CaptionReport, Rollout, Version
from actors.worker import RolloutWorker
from cluster.on_ray.failures import ProcessId, this_process
from cluster.on_ray.nodes import enter_run
from cluster.run.logs import StderrFile, stderr_path
from cluster.wiring import build_pipeline, build_worker
from configs.schema import RunConfig
from llm_server.client import AnnotationRefused, ServiceUnavailable
from llm_server.credentials import CredentialFiles
from llm_server.wire import STARTING
from reward_models.pipeline import RewardedCaption
from reward_models.table import RewardTable

KEPT_KERNELS = 64
"""In a worker of 64 environments this takes 20 MB less than keeping all, at the same speed."""


@ray.remote(max_restarts=0)
class WorkerActor:
    """A rollout worker."""

    def __init__(self, config: RunConfig, index: int, incarnation: str) -> None:
        import torch

        self._config, self._index, self._incarnation = config, index, incarnation
        self._stderr = StderrFile(stderr_path(Path(config.run_dir), f"{index}.{incarnation}"))
        enter_run(config)
        bound_kept_kernels(KEPT_KERNELS)
        torch.set_num_threads(config.actors.torch_threads)
        self._worker: RolloutWorker | None = None  # environments are made in the first `collect`, which has a deadline

    def hello(self) -> ProcessId:
        """Which process this is; answered once the actor has been placed and started."""
        return this_process()

    @ray.method(num_returns=2)
    def collect(
        self, snapshot: PolicySnapshot, acknowledgement: Acknowledgement | None
    ) -> tuple[Rollout, CaptionReport]:
        """One rollout and its caption report."""
        self._stderr.trim()
        if self._worker is None:
            self._worker = build_worker(
                self._config, self._index, incarnation=self._incarnation, stream=f"train-{self._incarnation}"
            )
        return self._worker.collect(snapshot, acknowledgement)

    def close(self) -> None:
        """Release the environments, which removes their temporary files."""
        if self._worker is not None:
            self._worker.close()
        self._stderr.discard()


@ray.remote(max_restarts=0)
class AnnotatorActor:
    """Annotator, reward model and, unless an address was given, the annotation service as a child process."""

    def __init__(self, config: RunConfig, run_epoch: int, credentials: CredentialFiles | None) -> None:
        import torch

        run = enter_run(config)
        torch.set_num_threads(1)  # reward_model.training_share is of one core
        self._replicas: Mapping[str, str] = {}
        self._replicas_problem: str | None = None
        addresses = self._addresses if config.cluster.service_replicas else None
        self._pipeline = build_pipeline(config, run, run_epoch, addresses, credentials)

    def begin(self, state: Mapping[str, Any] | None) -> None:
        """Start annotating, from `state` where there is one."""
        if state is not None:
            self._pipeline.load_state_dict(state)
        self._pipeline.start()

    def set_replicas(self, addresses: Mapping[str, str], problem: str | None) -> None:
        """Set the addresses of the annotation replicas by name, and the `problem` for which none will ever listen."""
        self._replicas, self._replicas_problem = addresses, problem

    def _addresses(self) -> Mapping[str, str]:
        if self._replicas_problem is not None:
            raise AnnotationRefused(self._replicas_problem)
        if not self._replicas:
            raise ServiceUnavailable(f"{STARTING}: no replica listens yet")
        return self._replicas

    def report(self, report: CaptionReport, env_steps: int) -> Acknowledgement:
        """Add a worker's captions to the caption book."""
        book_epoch, sequence_number = self._pipeline.report(
            report.texts, report.counts, report.worker_id, report.sequence_number, env_steps
        )
        return Acknowledgement(book_epoch=book_epoch, sequence_number=sequence_number)

    def update(self, known: Version | None) -> tuple[RewardTable | None, dict[str, float | None], str | None, bool]:
        """The newest table, None where it is `known`; metrics; the problem, if any; whether the judge still loads."""
        pipeline, table = self._pipeline, self._pipeline.latest_table()
        newer = table if table.reward_version != known else None
        return newer, dict(pipeline.metrics()), pipeline.problem, pipeline.is_loading

    def top_rewarded(self, n: int, min_count: int) -> list[RewardedCaption]:
        """See `cluster.interfaces.Annotation`."""
        return list(self._pipeline.top_rewarded(n, min_count))

    def state_dict(self) -> dict[str, Any]:
        """See `cluster.interfaces.Annotation`."""
        return self._pipeline.state_dict()

    def close(self) -> None:
        """Stop the service and the threads."""
        self._pipeline.close()
