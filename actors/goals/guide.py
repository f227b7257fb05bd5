"""Gives the goals to pursue outside a rollout worker, as in an evaluation: the keeper of a vector environment, with the
trackers that it needs.

Invariant: environments with a guide give goals exactly as those of a rollout worker, for the same seed and sheet.
"""

from collections.abc import Sequence

import numpy as np

from actors.captions import CaptionTracker
from actors.channels import Channels
from actors.environments.vector import VectorEnvironment, VectorStep
from actors.goals.keeper import GoalKeeper


class GoalGuide:
    """The `Guide` of a `GoalEntryEnvironment`."""

    def __init__(self, keeper: GoalKeeper, captions: CaptionTracker, channels: Channels) -> None:
        """Of as many environments each; the keeper has its sheet."""
        self._keeper, self._captions, self._channels = keeper, captions, channels
        self._returns = np.zeros(captions.num_envs)

    def begin(self, env: VectorEnvironment, raw_captions: Sequence[bytes]) -> np.ndarray:
        """See `Guide`."""
        self._returns[:] = 0.0
        for i, raw_caption in enumerate(raw_captions):
            self._captions.restart(i, raw_caption)
        self._channels.begin(env.states)
        self._keeper.begin(self._channels.state_ids, env.missions)
        return self._keeper.entries

    def step(self, env: VectorEnvironment, actions: np.ndarray, step: VectorStep) -> None:
        """See `Guide`."""
        rows, signals = slice(0, env.num_envs), self._channels.arrays(1)
        ids, _ = self._captions.observe(step.captions)
        self._channels.observe(signals, 0, rows, actions, step, env.states)
        self._returns += step.rewards
        items = {name: of_steps[0] for name, of_steps in signals.items()} | {"caption": ids}
        self._keeper.step(rows, step, items, self._returns, self._channels.state_ids, env.missions)
        for i in (*(end.index for end in step.ends), *step.losses):
            self._returns[i] = 0.0
