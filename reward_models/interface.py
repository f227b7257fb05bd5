"""The `RewardModel` protocol: turns judgements into one number per caption.

Invariant: a reward model is a function of the caption alone, so it is evaluated once per distinct caption and version.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol

import numpy as np

from llm_server.annotation import Caption, JudgedCaption


class RewardModel(Protocol):
    """What every reward model can do; one contract test holds them all to it."""

    name: str
    needs_judgements: bool
    """False for baselines that never ask the LLM."""

    def calibrate(self, threshold: float) -> None:
        """Take the threshold that the judge's rubric and model call for: known once the service answers, and the same or a
        new one at each restart of it. A threshold that is configured goes before it."""
        ...

    def learn(self, judged: Sequence[JudgedCaption]) -> Mapping[str, float]:
        """Take new judgements in and return metrics; judgements that are not OK must not become labels."""
        ...

    def score(self, captions: Sequence[Caption]) -> np.ndarray:
        """R per caption, [N] f32; NaN where the model has nothing to say yet (such captions stay out of the table)."""
        ...

    def retain(self, ids: Set[int]) -> None:
        """Forget what was remembered of single captions other than these: the rest has left the caption book."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to continue exactly: nested dict of arrays and JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...
