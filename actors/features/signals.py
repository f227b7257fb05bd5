"""The features of states in rollouts: after each action, before it, and at the start of the episode.

Invariant: `features[t]` is of the state that action t led to, an episode's own last one included; `features_before[t]`
of the state in which it was taken, and `features_start[t]` of the one in which its episode began, so neither ever mixes
two episodes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from actors.environments.vector import VectorStep
from configs.features import SOURCES

FEATURES = "features"
FEATURES_BEFORE, FEATURES_START = f"{FEATURES}_before", f"{FEATURES}_start"


class FeatureSignals:
    """The features of B environments, F of each, as `Rollout.signals`."""

    def __init__(self, num_envs: int, num_features: int) -> None:
        """Raises ValueError for environments without features."""
        if not num_features:
            raise ValueError(f"env.features: got none, wanted {SOURCES}: a term reads `features`")
        shape = num_envs, num_features
        self._before, self._start = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)

    def resume(self, features: np.ndarray | None) -> None:
        """The running episodes go on, from states of these features [B, F]."""
        self._before[:] = _given(features)

    def begin(self) -> None:
        """Those states, given by `resume`, are the ones in which new episodes have begun everywhere."""
        self._start[:] = self._before

    def arrays(self, num_steps: int) -> dict[str, np.ndarray]:
        """Arrays [T, B, F] for `Rollout.signals`."""
        shape = num_steps, *self._before.shape
        return {name: np.full(shape, np.nan, np.float32) for name in (FEATURES, FEATURES_BEFORE, FEATURES_START)}

    def observe(
        self,
        signals: Mapping[str, np.ndarray],
        t: int,
        rows: slice,
        step: VectorStep,
        features: np.ndarray | None,
    ) -> None:
        """Write step `t` of the environments `rows` into `signals`; `features` [N, F] are of the states that they are
        in now, of new episodes where any has begun."""
        signals[FEATURES][t, rows] = _given(step.features)
        signals[FEATURES_BEFORE][t, rows] = self._before[rows]
        signals[FEATURES_START][t, rows] = self._start[rows]
        self._before[rows] = _given(features)
        if step.ends or step.losses:
            begun = [rows.start + i for i in (*(end.index for end in step.ends), *step.losses)]
            self._start[begun] = self._before[begun]

    def state_dict(self) -> dict[str, Any]:
        """State from which, with the environments' states, the signals continue exactly."""
        return {"start": self._start.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; then call `resume`."""
        self._start[:] = state["start"]


def _given(features: np.ndarray | None) -> np.ndarray:
    if features is None:
        raise ValueError("a term reads features, but the environments were made without env.features")
    return features
