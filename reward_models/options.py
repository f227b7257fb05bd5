"""Options that any reward model takes, between its scores and the table: warm-up, the permuted control, clipping.

Invariant: applied once per version, to the whole table.
"""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from configs.service_schema import RewardModelConfig
from reward_models.control import Permutation


class RewardOptions:
    """What `reward_model.warmup_labels`, `permute` and `clip` do to rewards."""

    def __init__(self, config: RewardModelConfig, seed: int) -> None:
        self._config = config
        self._permutation = Permutation(seed) if config.permute else None
        self._num_labels = 0

    def note_labels(self, num: int) -> None:
        """So many answers that are labels have come so far, whatever evidence was made of them."""
        self._num_labels = num

    @property
    def is_warm(self) -> bool:
        """Whether there are labels enough to reward anything."""
        return self._num_labels >= self._config.warmup_labels

    def apply(self, ids: np.ndarray, counts: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """[N] f32 from the model's `rewards` [N] f32 of captions `ids` [N] u64 with `counts` [N] i64; NaN is unknown."""
        if self._permutation:
            rewards = self._permutation.apply(ids, counts, rewards)
        return np.clip(rewards, -self._config.clip, self._config.clip) if self._config.clip else rewards

    def retain(self, ids: Set[int]) -> None:
        """Forget the other captions."""
        if self._permutation:
            self._permutation.retain(ids)

    def state_dict(self) -> dict[str, Any]:
        """Counter and permutation."""
        return {"num_labels": self._num_labels, "permutation": self._permutation.state_dict() if self._permutation else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._num_labels = state["num_labels"]
        if self._permutation and state["permutation"] is not None:
            self._permutation.load_state_dict(state["permutation"])
