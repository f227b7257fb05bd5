"""The policy network that workers run and the learner trains, and the snapshots in which its weights travel.

Invariant: for equal weights `step`, taken T times, and `forward` over the T steps are the same function, up to rounding.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from actors.distinct_rows import RepeatedRows, encode_all, encode_distinct, project
from actors.encoding_cache import EncodingCache
from actors.environment import EnvironmentSpec
from actors.networks import make_encoder
from actors.previous_step import encode_previous_step, previous_step_entries
from actors.recurrent import RecurrentCore
from actors.repeating_encoder import RepeatingEncoder
from actors.rollout import Version
from configs.schema import PolicyConfig


class PolicyOutput(NamedTuple):
    """What the network says of T steps of B environments."""

    logits: Tensor
    """[T, B, A] f32."""
    values: Tensor
    """[T, B] f32."""
    core_state: dict[str, Tensor]
    """After the last step: name -> [B, H] f32."""


class PolicyNet(nn.Module):
    """Encoder, recurrent core, and linear heads for the logits and the value."""

    def __init__(self, spec: EnvironmentSpec, config: PolicyConfig) -> None:
        """Raises ValueError for a network that cannot read the environment's observations."""
        super().__init__()
        self._reuses = config.reuse_crops
        self._previous = previous_step_entries(spec.num_actions, config)
        missing = [name for name in self._previous if name not in spec.observations]
        if missing:
            raise ValueError(f"policy.{missing[0]} is true, but the observations have no such entry: make the environment with this policy")
        self.encoder = make_encoder({name: array for name, array in spec.observations.items() if name not in self._previous}, config)
        num_previous = sum(max(1, entry.num_values) for entry in self._previous.values())
        self.core = RecurrentCore(config.core, self.encoder.num_features + num_previous, config.core_size)
        self.policy_head = nn.Linear(self.core.num_features, spec.num_actions)
        self.value_head = nn.Linear(self.core.num_features, 1)
        for layer in (*self.encoder.modules(), self.policy_head, self.value_head):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.orthogonal_(layer.weight, config.head_gain if layer is self.policy_head else 1.0)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """The core's state at the start of an episode: `h` (and `c` for an LSTM) [B, H] f32 zeros; empty without a core."""
        return self.core.initial_state(batch_size)

    def forward(self, obs: Mapping[str, Tensor], core_state: dict[str, Tensor], reset_before: Tensor | None = None) -> PolicyOutput:
        """Logits and values of observations name -> [T, B, ...].

        `core_state` is the state before step 0; `reset_before` [T, B] bool (on the CPU) zeroes it before single steps.
        """
        num_steps, num_envs = next(iter(obs.values())).shape[:2]
        flat = {name: array.flatten(0, 1) for name, array in obs.items()}
        if self.core.kind != "none" and isinstance(self.encoder, RepeatingEncoder):
            gates = project([*self.encoder.parts(flat), *self._encode_previous(flat)], self.core.input)
            return self._after_core(*self.core.run(gates.unflatten(0, (num_steps, num_envs)), core_state, reset_before))
        features = self._append_previous(self.encoder(flat), flat).unflatten(0, (num_steps, num_envs))
        return self._after_core(*self.core(features, core_state, reset_before))

    def step(
        self, obs: Mapping[str, Tensor], core_state: dict[str, Tensor], caches: Mapping[str, EncodingCache] | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Logits [B, A], values [B] and the next core state for one step's observations name -> [B, ...].

        `caches`, of `make_caches`, are for steps one after another under the same weights, without gradients.
        """
        features = self._append_previous(self.encoder(obs, caches) if caches else self.encoder(obs), obs)
        logits, values, core_state = self._after_core(*self.core(features.unsqueeze(0), core_state, None))
        return logits[0], values[0], core_state

    def make_caches(self, max_rows: int) -> dict[str, EncodingCache]:
        """For `step`, for at most `max_rows` observations in all; none where this network has nothing to keep, or not on this device."""
        encoder, on_cpu = self.encoder, next(self.parameters()).device.type == "cpu"
        if not (self._reuses and on_cpu and isinstance(encoder, RepeatingEncoder)):
            return {}
        return {name: EncodingCache(max_rows) for name in encoder.repeating}

    def _encode_previous(self, obs: Mapping[str, Tensor]) -> list[RepeatedRows]:
        """The previous action and reward, where they are observed, as rows [N, features] beside the encoder's."""
        encode = encode_distinct if self._reuses else encode_all
        return [
            encode(obs[name].unsqueeze(1), functools.partial(encode_previous_step, name, entry)) for name, entry in self._previous.items()
        ]

    def _append_previous(self, features: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """The encoder's features [N, F], and after them those of the previous action and reward."""
        previous = [encode_previous_step(name, entry, obs[name].unsqueeze(1)) for name, entry in self._previous.items()]
        return torch.cat([features, *previous], -1) if previous else features

    def _after_core(self, outputs: Tensor, core_state: dict[str, Tensor]) -> PolicyOutput:
        """The heads over the core's outputs [T, B, H]."""
        # The heads stay in float32: they are small, and bf16 would round values and log-probabilities to three digits.
        with torch.autocast(outputs.device.type, enabled=False):
            outputs = outputs.float()
            return PolicyOutput(self.policy_head(outputs), self.value_head(outputs).squeeze(-1), core_state)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicySnapshot:
    """Weights at one version (learner -> workers; latest only)."""

    weights: dict[str, np.ndarray]
    """Parameter name -> f32 array; may be read-only."""
    policy_version: Version
    """(run_epoch, n)."""


def snapshot(net: PolicyNet, policy_version: Version) -> PolicySnapshot:
    """A copy of the net's weights in host memory."""
    weights = {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in net.state_dict().items()}
    return PolicySnapshot(weights=weights, policy_version=policy_version)


def load_snapshot(net: PolicyNet, snapshot: PolicySnapshot) -> None:
    """Copy the snapshot's weights into the net; raises RuntimeError where names or shapes are another network's."""
    net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in snapshot.weights.items()})
