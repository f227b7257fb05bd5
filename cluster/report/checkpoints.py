"""What the kept checkpoints of a run say about its rewards: the newest reward table, who judged, what was paid, and how
far the table moved from one checkpoint to the next.

Invariant: a checkpoint that is refused is named and skipped; policy weights are read and dropped again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from configs.errors import one_line

if TYPE_CHECKING:  # --help must not load torch
    from reward_models.table import RewardTable


class PaidLine(NamedTuple):
    """Intrinsic reward paid so far (run directory -> report)."""

    env_steps: int
    total: float
    captions: Mapping[int, float]
    """By caption id; without those that were paid little."""


class Drift(NamedTuple):
    """The distance of two reward tables."""

    from_steps: int
    to_steps: int
    distance: float
    """In [0, 1]: the mean change of R over the captions that both know, weighted by how often they occurred, as a share
    of the larger of the two rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """The rewards in the checkpoints (checkpoints -> report); everything is empty without one."""

    env_steps: int = 0
    """Of the newest checkpoint."""
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    """[N] u64, increasing: the captions of the newest reward table."""
    rewards: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """[N] f32: R of each."""
    judge: Mapping[str, Any] = field(default_factory=dict)
    """Model, engine, rubric and threshold of the judge, as it described itself."""
    drifts: list[Drift] = field(default_factory=list)
    paid_lines: list[PaidLine] = field(default_factory=list)
    """One per checkpoint, with every caption."""


def read_checkpoints(directory: Path, missing: list[str]) -> Learnt:
    """What the checkpoints in `directory` say; problems are appended to `missing`."""
    from learner.checkpoint_format import CheckpointError, load_checkpoint, steps_of

    learnt, before = Learnt(), None
    for steps, path in sorted(steps_of(directory).items()):
        try:
            state = load_checkpoint(path)
            learnt, before = _with_checkpoint(learnt, before, steps, state), state["annotation"]
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            missing.append(f"{path.name} is left out: {one_line(error, 200)}")
    if not learnt.env_steps:
        missing.append("there is no complete checkpoint yet: rewards by caption, the judge and replays are missing")
    return learnt


def _with_checkpoint(learnt: Learnt, before: Mapping[str, Any] | None, steps: int, state: Mapping[str, Any]) -> Learnt:
    """`learnt` of the checkpoints before, continued by that of `steps`."""
    from learner.rewards import paid_rewards
    from reward_models.table import RewardTable
    from reward_models.training import saved_table

    annotation = state["annotation"]
    table = saved_table(annotation["trainer"], 0) if annotation else RewardTable.empty()
    paid = paid_rewards(state["learner"]["rewards"]["paid"])
    drifts = learnt.drifts
    if before and annotation:
        drifts = [*drifts, Drift(learnt.env_steps, steps, table_distance(learnt, table, annotation["book"]["columns"]))]
    return Learnt(
        env_steps=steps,
        ids=table.ids,
        rewards=table.rewards,
        judge=(annotation.get("annotator") or {}).get("judge") or {},
        drifts=drifts,
        paid_lines=[*learnt.paid_lines, PaidLine(steps, sum(paid.values()), paid)],
    )


def table_distance(old: Learnt, new: "RewardTable", book: Mapping[str, np.ndarray]) -> float:
    """The distance of `Drift` between the table of `old` and the newer RewardTable; `book` has `id` and `count`."""
    shared, at_old, at_new = np.intersect1d(old.ids, new.ids, assume_unique=True, return_indices=True)
    order = np.argsort(book["id"])
    places = np.searchsorted(np.asarray(book["id"])[order], shared).clip(max=max(len(order) - 1, 0))
    counts = np.asarray(book["count"], np.float64)[order][places] if len(order) else np.zeros(len(shared))
    before, after = old.rewards[at_old], new.rewards[at_new]
    scale = float((counts * np.maximum(np.abs(before), np.abs(after))).sum())
    return float((counts * np.abs(after - before)).sum()) / scale if scale else 0.0
