"""`Plan`: what a campaign is to do, and the two ways in which it ends before that is done.

Invariant: nothing here changes while a campaign runs.
"""

from dataclasses import dataclass
from pathlib import Path

from cluster.design.kind import DesignKind
from configs.schema import RunConfig


class Stopped(Exception):
    """The campaign was asked to stop; the same command goes on."""


class BudgetSpent(Exception):
    """The next step would exceed a budget, or there is nothing more to be written; says which."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a campaign is to do (command -> campaign)."""

    kind: DesignKind
    task: str
    """In one sentence."""
    base: RunConfig
    """Of every run, but for its program, steps, seed and directory."""
    features: tuple[str, ...]
    actions: tuple[str, ...]
    steps: int
    """Environment steps of a run."""
    out: Path
    remarks: tuple[str, ...] = ()
    """Of a person; each adds a round."""
    archive: Path | None = None
    """A run that keeps episodes; without one the run of the campaign that tells most."""
    jobs: int = 1
    """Runs at a time."""
    max_env_steps: int = 0
    """Of all runs; 0 sets no limit."""
    max_writings: int = 0
    """0 sets no limit."""

    @property
    def num_rounds(self) -> int:
        """Those of the kind, and one for each remark."""
        return self.kind.rounds + len(self.remarks)

    @property
    def cost(self) -> int:
        """Environment steps of all runs of one program: each ends with a whole batch."""
        actors = self.base.actors
        batch = actors.envs_per_worker * actors.rollout_steps * self.base.learner.rollouts_per_batch
        return self.kind.seeds * -(-self.steps // batch) * batch
