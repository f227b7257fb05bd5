"""What the training loop needs of the parts around it; `cluster.inline` and `cluster.on_ray.driver` provide both.

Invariant: the loop cannot tell the spawners apart: nothing here blocks longer than it says, and nothing here raises
because a worker or the annotator is down, until a budget of `cluster.supervision` is spent.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from actors.environments.vector import EnvironmentSpec
from actors.goals.sheet import GoalSheet
from actors.policy import PolicySnapshot
from actors.rollout import Rollout
from reward_models.pipeline import RewardedCaption
from reward_models.published import PublishedReward


class Workers(Protocol):
    """The rollout workers as one FIFO of rollouts."""

    spec: EnvironmentSpec

    @property
    def problems(self) -> Sequence[str]:
        """Messages for the user about failed workers and environments: each kind once, oldest first."""

    @property
    def waiting(self) -> str | None:
        """What workers wait for before they can start; None where all run."""

    def publish(self, snapshot: PolicySnapshot) -> None:
        """Make `snapshot` what the next `collect` calls act with; latest only."""

    def publish_goals(self, sheet: GoalSheet) -> None:
        """Make `sheet` what workers choose goals by from their next `collect` on; latest only, and an older one does
        for a while."""

    def take(self, timeout_s: float) -> Rollout | None:
        """The next rollout, or None where none came within `timeout_s`."""

    def metrics(self) -> Mapping[str, float | None]:
        """Catalogue metrics of the workers."""

    def state_dict(self) -> dict[str, Any]:
        """The workers' state that a resume restores; without episodes where workers start new ones."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""


class Annotation(Protocol):
    """Annotators, reward models and reward tables of all terms of the reward."""

    @property
    def problem(self) -> str | None:
        """Why captions are no longer judged, for the user; None while annotation works or may recover by itself."""

    def latest_reward(self) -> PublishedReward:
        """The newest reward table of every term; never waits for a judgement."""

    def metrics(self) -> Mapping[str, Any]:
        """Catalogue metrics of the main term's annotation and reward model; with other terms also `terms`, see
        `RewardPipeline.metrics`."""

    def top_rewarded(self, n: int, min_count: int) -> Sequence[RewardedCaption]:
        """The captions, and items of other terms, with the highest reward among those seen at least `min_count` times:
        `n` in all."""

    def state_dict(self) -> dict[str, Any]:
        """Caption books, reward models and tables."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
