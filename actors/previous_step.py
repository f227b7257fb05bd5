"""The previous action and reward as observation entries (`policy.previous_action`, `policy.previous_reward`).

With them a policy can tell what its own action changed (Espeholt et al. 2018; Kapturowski et al. 2019).

Invariant: they belong to the running episode. Its first observation has no action and a reward of 0; its own last
observation has the action and the reward that led to it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from actors.environments.vector import ArraySpec, ExtendedEnvironment, VectorEnvironment, VectorStep
from configs.schema import PolicyConfig

ACTION, REWARD = "previous_action", "previous_reward"


def previous_step_entries(num_actions: int, config: PolicyConfig) -> dict[str, ArraySpec]:
    """The entries that `config` adds: the action's number plus one (0: none), and the unscaled reward."""
    entries = {}
    if config.previous_action:
        dtype = np.dtype(np.uint8 if num_actions < 256 else np.int32)
        entries[ACTION] = ArraySpec(shape=(), dtype=dtype, num_values=num_actions + 1)
    if config.previous_reward:
        entries[REWARD] = ArraySpec(shape=(), dtype=np.dtype(np.float32))
    return entries


def encode_previous_step(name: str, spec: ArraySpec, array: Tensor) -> Tensor:
    """[N, 1] -> [N, features]: the action one-hot, the reward clipped to [-1, 1] (Espeholt et al. 2018)."""
    if name == ACTION:
        return F.one_hot(array[:, 0].long(), spec.num_values).float()
    return array.clamp(-1, 1)


class PreviousStepEnvironment(ExtendedEnvironment):
    """Wraps a vector environment and adds these entries to its observations."""

    def __init__(self, env: VectorEnvironment, config: PolicyConfig) -> None:
        """Raises ValueError if the environment already has entries of these names."""
        self._specs = previous_step_entries(env.spec.num_actions, config)
        super().__init__(env, self._specs, [f"policy.{name}" for name in self._specs])
        self._entries = self._make_entries()

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Start an episode everywhere."""
        obs, captions = self._env.reset()
        self._entries = self._make_entries()
        return obs | self._entries, captions

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray] | None = None) -> VectorStep:
        """Take one action in each environment."""
        step = self._step(actions, out)
        self._entries = self._make_entries() if out is None else {name: out[name] for name in self._specs}
        for name, values in ((ACTION, actions + 1), (REWARD, step.rewards)):
            if name in self._entries:
                self._entries[name][:] = values
        ends = []
        for end in step.ends:
            own = {name: array[end.index].copy() for name, array in self._entries.items()}
            ends.append(replace(end, final_obs=end.final_obs | own))
        for array in self._entries.values():
            array[step.terminated | step.truncated] = 0
        return replace(step, obs=step.obs | self._entries, ends=ends)

    def state_dict(self) -> dict[str, Any]:
        """The environment's state and the current entries."""
        entries = {name: array.copy() for name, array in self._entries.items()}
        return {**self._env.state_dict(), "previous_step": entries}

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """Continue from `state_dict`: all current observations if the environment's state was exact, else None."""
        obs = self._env.load_state_dict(state)
        if obs is None:
            return None
        self._entries = {name: np.array(state["previous_step"][name], spec.dtype) for name, spec in self._specs.items()}
        return obs | self._entries

    def _make_entries(self) -> dict[str, np.ndarray]:
        return {name: np.zeros((self.num_envs, *spec.shape), spec.dtype) for name, spec in self._specs.items()}
