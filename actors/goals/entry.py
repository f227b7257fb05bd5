"""The goal that an environment's policy pursues, as an observation entry (`policy.reads_goal`).

Invariant: 0 is no goal, g + 1 is goal g of the run's `GoalSheet`. Without a guide the entry is 0, and a rollout worker
writes the goals of its keeper over it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from actors.environments.vector import ArraySpec, ExtendedEnvironment, VectorEnvironment, VectorStep
from configs.goal_schema import MAX_GOALS

GOAL = "goal"
GOAL_SPEC = ArraySpec(shape=(), dtype=np.dtype(np.int16), num_values=MAX_GOALS + 1)


class Guide(Protocol):
    """Says which goals are pursued: `actors.goals.guide.GoalGuide`."""

    def begin(self, env: VectorEnvironment, raw_captions: Sequence[bytes]) -> np.ndarray:
        """The goals [B] i16 of the episodes that have begun everywhere."""

    def step(self, env: VectorEnvironment, actions: np.ndarray, step: VectorStep) -> None:
        """Write the goals to pursue after a step into its observations."""


class GoalEntryEnvironment(ExtendedEnvironment):
    """Wraps a vector environment and adds the entry GOAL to its observations."""

    guide: Guide | None = None
    """Set it before `reset`."""

    def __init__(self, env: VectorEnvironment) -> None:
        """Raises ValueError if the environment already has an entry of this name."""
        super().__init__(env, {GOAL: GOAL_SPEC}, ["policy.reads_goal"])
        self.state_dict = env.state_dict

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Start an episode everywhere."""
        obs, captions = self._env.reset()
        goals = self._none() if self.guide is None else self.guide.begin(self._env, captions)
        return obs | {GOAL: goals}, captions

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None = None) -> VectorStep:
        """Take one action in each environment."""
        step = self._step(actions, out)
        goals = self._none() if out is None else out[GOAL]
        goals[:] = 0
        ends = [replace(end, final_obs=end.final_obs | {GOAL: np.zeros((), GOAL_SPEC.dtype)}) for end in step.ends]
        step = replace(step, obs=step.obs | {GOAL: goals}, ends=ends)
        if self.guide is not None:
            self.guide.step(self._env, actions, step)
        return step

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """See `VectorEnvironment`."""
        obs = self._env.load_state_dict(state)
        return None if obs is None else obs | {GOAL: self._none()}

    def _none(self) -> np.ndarray:
        return np.zeros(self.num_envs, GOAL_SPEC.dtype)
