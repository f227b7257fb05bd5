"""The columns of the caption book, and what to ask next: the priority of every caption under `annotator.policy`.

Invariant: priorities are a function of the columns that are kept, so a resumed run asks in the same order.
"""

from enum import IntEnum
from typing import Any

import numpy as np

POLICIES = ("recency_frequency", "frequency", "uncertainty", "disagreement")
LEAST_DEVIATION = 1e-6
"""Networks that agree exactly count as this far apart, so that frequency still decides among their captions."""


class CaptionState(IntEnum):
    """How far a caption is on the way to a label."""

    NO_TEXT = 0
    PENDING = 1
    ASKED = 2
    OK = 3
    UNPARSED = 4
    REJECTED = 5


# Beside the ids and the texts, which `IdRows` and `CaptionTexts` hold.
COLUMNS: dict[str, Any] = {
    "count": np.int64,
    "first_seen": np.int64,  # environment steps
    "last_seen": np.int64,
    "state": np.uint8,
    "probability": np.float64,
    "answer_mass": np.float64,
    "margin": np.float64,  # of the newest reward model, or with `disagreement` the deviation of its networks
}
ARCHIVED = [name for name in COLUMNS if name != "margin"]
"""Those that the archive has, in its order, after id and text."""
# Meaningless to another process, so not part of the state.
LOCAL_COLUMNS: dict[str, Any] = {"entered_s": np.float64, "archived": np.bool_}
NEW_ROW = {"count": 0, "state": CaptionState.NO_TEXT, "probability": np.nan, "answer_mass": np.nan, "margin": np.nan}


def empty_columns() -> dict[str, np.ndarray]:
    """Columns without rows."""
    return {name: np.empty(0, dtype) for name, dtype in (COLUMNS | LOCAL_COLUMNS).items()}


def log_priorities(
    policy: str, counts: np.ndarray, last_seen: np.ndarray, margins: np.ndarray, half_life_env_steps: int
) -> np.ndarray:
    """[N] f64, log2 of the priority of captions seen `counts` times, last at `last_seen` (environment steps).

    `recency_frequency`: count 0.5^((now - last_seen) / half_life); its logarithm has the same order without `now`:
    log2(count) + last_seen / half_life. `frequency`: count. `uncertainty`: count 4 s(m) (1 - s(m)), s the logistic
    function and m the reward model's margin (NaN, unknown: maximally uncertain). `disagreement`: count d, with d the
    standard deviation of the reward model's networks, which `margins` then holds (NaN, unknown: 1). Raises ValueError
    for another policy.
    """
    # A text sent again to a new book comes without a count, and counts as half an occurrence.
    frequency = np.log2(np.maximum(counts, 0.5))
    if policy == "recency_frequency":
        return frequency + last_seen / half_life_env_steps
    if policy == "frequency":
        return frequency
    if policy == "uncertainty":
        m = np.abs(np.nan_to_num(margins, nan=0.0))  # log2(4 s (1 - s)) = 2 - (|m| + 2 log(1 + exp(-|m|))) / log 2
        return frequency + 2.0 - (m + 2.0 * np.log1p(np.exp(-m))) / np.log(2.0)
    if policy == "disagreement":
        return frequency + np.log2(np.maximum(np.nan_to_num(margins, nan=1.0), LEAST_DEVIATION))
    raise ValueError(f"annotator.policy is one of {', '.join(POLICIES)}, got {policy!r}")
