"""The spawner for one process: workers, annotation and learner take turns, so that a run is deterministic and
breakpoints work.

Invariant: one turn is collect -> report -> at most `labels_per_turn` judgements of each term -> reward models ->
tables; nothing runs concurrently.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from actors.goals.sheet import GoalSheet
from actors.policy import PolicySnapshot
from actors.rollout import Acknowledgement, Rollout
from cluster.supervision import EnvironmentBudget, Notices
from cluster.wiring import build_worker, take_report
from configs.schema import RunConfig
from reward_models.reward_pipeline import RewardPipeline


class InlineWorkers:
    """Rollout workers in this process, collected from in turn; each `take` is one whole turn."""

    def __init__(self, config: RunConfig, pipeline: RewardPipeline, *, run_epoch: int) -> None:
        torch.set_num_threads(config.actors.torch_threads)
        self._pipeline, self._labels_per_turn = pipeline, config.annotator.labels_per_turn
        self._workers = [
            build_worker(config, index, incarnation=f"{run_epoch}", stream="train")
            for index in range(config.actors.num_workers)
        ]
        self._acknowledgements: list[Acknowledgement | None] = [None] * len(self._workers)
        self._turn = 0
        self._snapshot: PolicySnapshot | None = None
        self._goals: GoalSheet | None = None
        self._collected_steps = 0
        notices = Notices()
        self.problems: Sequence[str] = notices.told
        self._environments = EnvironmentBudget(config.cluster.max_environment_loss, notices)
        self.waiting: str | None = None
        self.spec = self._workers[0].env.spec

    def publish(self, snapshot: PolicySnapshot) -> None:
        """Set the policy of the next turn."""
        self._snapshot = snapshot

    def publish_goals(self, sheet: GoalSheet) -> None:
        """Set the goals of the next turns."""
        self._goals = sheet

    def take(self, timeout_s: float) -> Rollout | None:
        """Run one turn; its rollout, never None. Raises GiveUp where the environments raise too often."""
        index = self._turn
        self._turn = (index + 1) % len(self._workers)
        rollout, report = self._workers[index].collect(self._snapshot, self._acknowledgements[index], self._goals)
        self._collected_steps += rollout.num_steps
        self._acknowledgements[index] = take_report(self._pipeline, report, self._collected_steps)
        self._pipeline.turn(self._labels_per_turn)
        self._environments.note(rollout)
        return rollout

    def metrics(self) -> Mapping[str, float | None]:
        """There is no queue, and there are no restarts."""
        return {"rollouts_waiting": 0, "worker_restarts": 0, "environment_errors": self._environments.errors}

    def state_dict(self) -> dict[str, Any]:
        """Every worker's state."""
        return {
            "collected_steps": self._collected_steps,
            "turn": self._turn,
            "workers": [worker.state_dict() for worker in self._workers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._collected_steps = state["collected_steps"]
        self._turn = state.get("turn", 0)
        # A run that was on Ray before has no workers' states: its episodes start again.
        for worker, saved in zip(self._workers, state.get("workers", ()), strict=False):
            worker.load_state_dict(saved)

    def close(self) -> None:
        """Release the environments."""
        for worker in self._workers:
            worker.close()
