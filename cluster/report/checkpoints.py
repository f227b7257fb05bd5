"""What the kept checkpoints of a run say about the terms of its reward: the newest reward tables, who judged, what was
paid, and how far each table moved from one checkpoint to the next.

Invariant: a checkpoint that is refused is named and skipped; policy weights are read and dropped again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.errors import one_line
from configs.reward_schema import MAIN_TERM

MAX_DRIFTS = 20


class PaidLine(NamedTuple):
    """Intrinsic reward that the main term has paid so far (run directory -> report)."""

    env_steps: int
    total: float
    captions: Mapping[int, float]
    """By caption id; without those that were paid little."""


class Drift(NamedTuple):
    """The distance of two reward tables."""

    from_steps: int
    to_steps: int
    distance: float
    """In [0, 1]; see `reward_models.distance.table_distance`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearntTerm:
    """One term of the reward in the checkpoints (checkpoints -> report); everything is empty without one."""

    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    """[N] u64, increasing: the items of the newest reward table."""
    rewards: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """[N] f32: R of each."""
    judge: Mapping[str, Any] = field(default_factory=dict)
    """Model, engine, rubric and threshold of the judge, as it described itself."""
    drifts: tuple[Drift, ...] = ()
    paid_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    """[M] u64, in any order: the items that were ever paid."""
    paid: np.ndarray = field(default_factory=lambda: np.empty(0, np.float64))
    """[M] f64: what each was paid in the whole run; of the main term the sum of absolute values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """The rewards in the checkpoints (checkpoints -> report); everything is empty without one."""

    env_steps: int = 0
    """Of the newest checkpoint."""
    terms: Mapping[str, LearntTerm] = field(default_factory=dict)
    """By name; without those that have no reward model."""
    state_of_goals: Mapping[str, Any] = field(default_factory=dict)
    """What `cluster.goals.facts.goal_facts` reads, of the newest checkpoint; empty in a run without goals."""
    paid_lines: list[PaidLine] = field(default_factory=list)
    """One per checkpoint, with every caption."""

    @property
    def main(self) -> LearntTerm:
        """The main term."""
        return self.of(MAIN_TERM)

    def of(self, term: str) -> LearntTerm:
        """A term by name, empty where the checkpoints do not hold it."""
        return self.terms.get(term) or LearntTerm()


def read_checkpoints(directory: Path, missing: list[str]) -> Learnt:
    """What the checkpoints in `directory` say; problems are appended to `missing`."""
    from learner.checkpoint_format import CheckpointError, load_checkpoint, steps_of  # --help must not load torch

    learnt, lines = Learnt(), list[PaidLine]()
    for steps, path in sorted(steps_of(directory).items()):
        try:
            learnt = with_checkpoint(learnt, steps, load_checkpoint(path))
            paid = dict(zip(learnt.main.paid_ids.tolist(), learnt.main.paid.tolist(), strict=True))
            lines.append(PaidLine(steps, sum(paid.values()), paid))
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            missing.append(f"{path.name} is left out: {one_line(error, 200)}")
    if not learnt.env_steps:
        missing.append("there is no complete checkpoint yet: rewards by caption, the judge and replays are missing")
    return replace(learnt, paid_lines=lines)


def with_checkpoint(learnt: Learnt, steps: int, state: Mapping[str, Any]) -> Learnt:
    """`learnt` of the checkpoints before, continued by the one of `steps`, but for `paid_lines`."""
    from reward_models.reward_pipeline import states_by_term

    pipelines, rewards = states_by_term(state["annotation"]), state["learner"]["rewards"]
    paid = {**rewards.get("paid_by_term", {}), MAIN_TERM: rewards["paid"]}
    terms = {name: _term(learnt, name, steps, saved, paid.get(name)) for name, saved in pipelines.items()}
    of_goals = {
        "annotation": {"goals": state["annotation"].get("goals")},
        "learner": {"rewards": {"paid_goals": rewards.get("paid_goals")}},
    }
    has_goals = bool(of_goals["annotation"]["goals"])
    return Learnt(env_steps=steps, terms=terms, state_of_goals=of_goals if has_goals else {})


def _term(
    learnt: Learnt, name: str, steps: int, saved: Mapping[str, Any], paid: Mapping[str, np.ndarray] | None
) -> LearntTerm:
    from reward_models.distance import table_distance
    from reward_models.table import RewardTable
    from reward_models.training import saved_table

    table, before = saved_table(saved["trainer"], 0), learnt.terms.get(name)
    drifts = before.drifts if before else ()
    if before and learnt.env_steps < steps:
        former = RewardTable(ids=before.ids, rewards=before.rewards, reward_version=(0, 0))
        book = saved["book"]["columns"]
        distance = table_distance(former, table, np.asarray(book["id"]), np.asarray(book["count"]))
        drifts = (*drifts, Drift(learnt.env_steps, steps, distance))[-MAX_DRIFTS:]
    sums = {"paid_ids": np.asarray(paid["ids"]), "paid": np.asarray(paid["sums"])} if paid else {}
    judge = (saved.get("annotator") or {}).get("judge") or {}
    return LearntTerm(ids=table.ids, rewards=table.rewards, judge=judge, drifts=drifts, **sums)
