"""Sheets of goals for tests, and the corridor's captions as what achieves them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.captions import caption_id
from actors.goals.sheet import GoalSheet, mask_of
from configs.goal_schema import GOAL_WIDTH, MAX_GOALS


def masks_of(goals: Sequence[Sequence[int]]) -> np.ndarray:
    """[N, 4] u64 of the goals of each of N things."""
    present = np.zeros((len(goals), MAX_GOALS), bool)
    for row, some in enumerate(goals):
        present[row, list(some)] = True
    return mask_of(present)


def by_id(goals: Mapping[int, Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids, increasing, and masks."""
    ids = sorted(goals)
    return np.array(ids, np.uint64), masks_of([goals[id_] for id_ in ids])


def padded(values: Sequence[float], fill: float, dtype: Any) -> np.ndarray:
    """[256] of the values of the first goals."""
    array = np.full(MAX_GOALS, fill, dtype)
    array[: len(values)] = values
    return array


def make_sheet(
    texts: Sequence[str],
    *,
    achieved: Mapping[int, Sequence[int]] | None = None,
    suggested: Mapping[int, Sequence[int]] | None = None,
    weights: Sequence[float] | None = None,
    before: Sequence[int] = (),
    number: int = 0,
    seed: int = 0,
) -> GoalSheet:
    """A sheet with random vectors of unit length; a goal's vector depends on its number and `seed` alone."""
    vectors = np.random.default_rng(seed).normal(size=(MAX_GOALS, GOAL_WIDTH)).astype(np.float32)[: len(texts)]
    achieved_ids, achieved_masks = by_id(achieved or {})
    suggested_ids, suggested_masks = by_id(suggested or {})
    return GoalSheet(
        version=(1, number),
        texts=tuple(texts),
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        sampling=padded([1.0] * len(texts) if weights is None else weights, 0.0, np.float32),
        before=padded(before, -1, np.int16),
        suggested_ids=suggested_ids,
        suggested=suggested_masks,
        achieved_ids=achieved_ids,
        achieved=achieved_masks,
    )


def corridor_sheet(cells: Sequence[int], **options: Any) -> GoalSheet:
    """Goal g: to advance to cell `cells[g]` of the toy corridor."""
    achieved = {caption_id(f"You advance to cell {cell}."): [goal] for goal, cell in enumerate(cells)}
    return make_sheet([f"advance to cell {cell}" for cell in cells], achieved=achieved, **options)
