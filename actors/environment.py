"""The vector environment that a worker steps, and the generic one over any gymnasium environment.

Invariant: environments reset within the same step (SAME_STEP), and what an episode's last step showed (observation,
caption) is kept apart from the first observation of the next.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Shape and dtype of one observation entry, without the environment axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    num_values: int = 0
    """For categorical integers: values lie in [0, num_values); 0 means a numeric array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """What a network must know of an environment."""

    observations: dict[str, ArraySpec]
    """Entries that the network reads."""
    num_actions: int
    """Size of the discrete action set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeEnd:
    """The end of one environment's episode, before its reset."""

    index: int
    """Which environment."""
    final_obs: dict[str, np.ndarray]
    """The episode's own last observation, name -> [...]."""
    reset_caption: bytes
    """Raw caption of the new episode's first observation: counted, not rewarded."""
    info: dict[str, float]
    """End-of-episode figures for the logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorStep:
    """One step of B environments (environment -> worker)."""

    obs: dict[str, np.ndarray]
    """name -> [B, ...], after the reset where an episode ended; may be reused by the next step: copy what is kept."""
    rewards: np.ndarray
    """[B] f32."""
    terminated: np.ndarray
    """[B] bool."""
    truncated: np.ndarray
    """[B] bool."""
    captions: list[bytes]
    """Raw captions of what this step led to (before normalisation; UTF-8)."""
    ends: list[EpisodeEnd] = field(default_factory=list)
    """One per environment whose episode ended in this step."""


class VectorEnvironment(Protocol):
    """B environments stepped together by one worker."""

    spec: EnvironmentSpec
    num_envs: int

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Start an episode everywhere: observations name -> [B, ...] and the raw captions of what they show."""
        ...

    def step(self, actions: np.ndarray) -> VectorStep:
        """Take one action in each environment; `actions` is [B] i64."""
        ...

    def state_dict(self) -> dict[str, Any] | None:
        """State from which `load_state_dict` continues bit for bit (nested dict of arrays and JSON values); None where an environment cannot save it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...

    def close(self) -> None:
        """Release engines, processes and temporary files."""
        ...
