"""What the captions of one episode are worth to a run: the reward of each step, and the judge's probability.

Invariant: captions are normalised and counted as the workers do it, and rewarded by the learner's formula.
"""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from actors.captions import CaptionTracker, caption_id, normalize
from cluster.run.evaluation import Subject
from learner.reward.mixer import mix_rewards
from llm_server.offline.caption_file import read_probabilities
from reward_models.table import RewardTable
from reward_models.training import saved_table


class PaidCaption(NamedTuple):
    """One caption of an episode."""

    text: str
    intrinsic: float
    """R / (occurrence in the episode)^beta, without k_int; 0 for the reset's."""
    probability: float | None


def paid_captions(subject: Subject, raw_captions: Sequence[bytes]) -> list[PaidCaption]:
    """The captions of a whole episode, that of its reset first. Without a reward model nothing is paid."""
    env = subject.config.env
    text_of = functools.partial(normalize, fold_case=env.fold_case, fold_digits=env.fold_digits)
    tracker, (first, *others) = CaptionTracker(1, text_of), raw_captions
    tracker.restart(0, first)
    observed = [tracker.observe([raw]) for raw in others]
    ids, counts = (np.stack(arrays) for arrays in zip(*observed, strict=True))  # [T, 1] each
    trainer = subject.annotation.get("trainer")
    table = RewardTable.empty() if trainer is None else saved_table(trainer, 0)
    mixed = mix_rewards(
        extrinsic_rewards=np.zeros(ids.shape, np.float32),
        caption_ids=ids,
        caption_counts=counts,
        table=table,
        config=replace(subject.config.reward, intrinsic_coefficient=1.0),
        is_due=_first_of_goal(table.look_up_goals(ids[:, 0])[:, 0])[:, None],
    )
    texts = [text_of(raw) for raw in raw_captions]
    numbers = [*map(caption_id, texts)]
    probabilities: dict[int, float] = {}
    if trainer is not None:
        with contextlib.suppress(ValueError):  # a run that was copied without its archive
            probabilities = read_probabilities(str(subject.run.captions), {*numbers})
    intrinsic = [0.0, *mixed.intrinsic[:, 0].tolist()]
    captions = zip(texts, intrinsic, map(probabilities.get, numbers), strict=True)
    return [PaidCaption(*caption) for caption in captions]


def _first_of_goal(bits: np.ndarray) -> np.ndarray:
    """[T] bool: False where the goal of a step, one bit or none of `bits` [T] u64, was reached in an earlier one."""
    is_due = bits == 0
    is_due[np.unique(bits, return_index=True)[1]] = True
    return is_due
