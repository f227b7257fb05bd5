"""The policy network, run by workers and trained by the learner, the snapshots that carry its weights, and how it
computes: in which precision, and with what size of the kernel caches of torch's libraries.

Invariant: for equal weights, T calls of `step` and one `forward` over the T steps give the same results, up to
rounding.
"""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from actors.environments.vector import EnvironmentSpec
from actors.goals.entry import GOAL, GOAL_SPEC
from actors.networks.encoders import make_encoder
from actors.networks.goal_reader import FEATURES, GoalReader
from actors.networks.recurrent import RecurrentCore
from actors.networks.repeated_rows import EncodingCache, RepeatedRows, RepeatingEncoder, encode_rows, project
from actors.previous_step import encode_previous_step, previous_step_entries
from actors.rollout import Version
from configs.devices import bfloat16_is_faster
from configs.schema import PolicyConfig


class PolicyOutput(NamedTuple):
    """The network's results for T steps of B environments."""

    logits: Tensor  # [T, B, A] f32
    values: Tensor  # [T, B] f32
    core_state: dict[str, Tensor]  # after the last step: name -> [B, H] f32
    core_outputs: Tensor  # [T, B, H]: the heads' input from the core; without a core, the encoder's features


class PolicyNet(nn.Module):
    """Encoder, recurrent core, and linear heads for the logits and the value. The value head's own output is in units
    of `value_scale` around `value_mean`, which the learner sets if it normalises returns."""

    def __init__(self, spec: EnvironmentSpec, config: PolicyConfig) -> None:
        """Raises ValueError for a network that cannot read the environment's observations."""
        super().__init__()
        self._reuses = config.reuse_crops
        self._previous = previous_step_entries(spec.num_actions, config)
        fix = "make the environment with this policy"
        if missing := [name for name in self._previous if name not in spec.observations]:
            raise ValueError(f"policy.{missing[0]} is true, but the observations have no such entry: {fix}")
        if config.reads_goal and spec.observations.get(GOAL) != GOAL_SPEC:
            raise ValueError(f"policy.reads_goal is true, but the observations have no {GOAL!r}: {fix}")
        beside = {*self._previous, GOAL} if config.reads_goal else {*self._previous}
        self.encoder = make_encoder(
            {name: array for name, array in spec.observations.items() if name not in beside}, config
        )
        num_features = self.encoder.num_features + sum(max(1, entry.num_values) for entry in self._previous.values())
        self.goal_reader = GoalReader(num_features) if config.reads_goal else None
        num_products = FEATURES if config.reads_goal else 0
        num_read = num_features + num_products
        num_features = num_read + num_products
        self.core = RecurrentCore(config.core, num_features if config.core == "none" else num_read, config.core_size)
        self.policy_head = nn.Linear(self.core.num_features, spec.num_actions)
        self.value_head = nn.Linear(self.core.num_features, 1)
        has_skip = config.core_skip and config.core != "none"
        self.skip_head = nn.Linear(num_features, spec.num_actions + 1, bias=False) if has_skip else None
        self.value_mean, self.value_scale = nn.Buffer(torch.zeros(())), nn.Buffer(torch.ones(()))
        gains: dict[nn.Module, float] = {self.policy_head: config.head_gain, self.value_head: 1.0}
        for layer in (*self.encoder.modules(), self.policy_head, self.value_head):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.orthogonal_(layer.weight, gains.get(layer, config.encoder_gain))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if self.skip_head is not None:
            nn.init.orthogonal_(self.skip_head.weight.detach()[:-1], config.head_gain)
            nn.init.orthogonal_(self.skip_head.weight.detach()[-1:], 1.0)

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """The core's state at an episode's start: `h` (and `c` for an LSTM) [B, H] f32 zeros; empty without a core."""
        return self.core.initial_state(batch_size)

    def forward(
        self, obs: Mapping[str, Tensor], core_state: dict[str, Tensor], reset_before: Tensor | None = None
    ) -> PolicyOutput:
        """Logits and values of observations name -> [T, B, ...]; `core_state` is the state before step 0, and
        `reset_before` [T, B] bool (on the CPU) zeroes it before single steps."""
        num_steps, num_envs = next(iter(obs.values())).shape[:2]
        flat = {name: array.flatten(0, 1) for name, array in obs.items()}
        if self.core.kind != "none" and isinstance(self.encoder, RepeatingEncoder):
            encoded = self._append(self.encoder.encode_branches(flat), flat, reuses=self._reuses)
            gates = project(encoded, self.core.input).unflatten(0, (num_steps, num_envs))
            outputs, core_state = self.core.run(gates, core_state, reset_before)
            features = None
            if self.skip_head is not None:
                rows = torch.cat([branch.rows() for branch in encoded], -1).unflatten(0, (num_steps, num_envs))
                features = self._for_heads(rows)
        else:
            read, features = (
                rows.unflatten(0, (num_steps, num_envs)) for rows in self._append_rows(self.encoder(flat), flat)
            )
            outputs, core_state = self.core(read, core_state, reset_before)
        return self._after_core(outputs, core_state, features)

    def step(
        self,
        obs: Mapping[str, Tensor],
        core_state: dict[str, Tensor],
        caches: Mapping[str, EncodingCache] | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Logits [B, A], values [B] and the next core state for one step's observations name -> [B, ...]; `caches`
        (from `make_caches`) are for consecutive steps under the same weights, without gradients."""
        caches = caches or {}
        read, features = self._append_rows(self.encoder(obs, caches) if caches else self.encoder(obs), obs, caches)
        outputs, core_state = self.core(read.unsqueeze(0), core_state, None)
        output = self._after_core(outputs, core_state, features.unsqueeze(0))
        return output.logits[0], output.values[0], output.core_state

    def make_caches(self, max_rows: int) -> dict[str, EncodingCache]:
        """Caches for `step`, for at most `max_rows` observations; empty if network or device do not use them."""
        encoder, on_cpu = self.encoder, next(self.parameters()).device.type == "cpu"
        if not (self._reuses and on_cpu and isinstance(encoder, RepeatingEncoder)):
            return {}
        goal = () if self.goal_reader is None else (GOAL,)
        return {name: EncodingCache(max_rows) for name in (*encoder.repeating, *goal)}

    def hold_layers_in(self, dtype: torch.dtype) -> None:
        """Keep the weights of the encoder's and the core's layers in `dtype`, to which autocast would cast them at each
        use. Only for inference: `load_weights` rounds what it copies into them."""
        readers = () if self.goal_reader is None else self.goal_reader.modules()
        for layer in (*self.encoder.modules(), *readers, *self.core.modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(dtype)

    @property
    def goal_vectors(self) -> Tensor | None:
        """[257, D]: the vector that each value of the entry `goal` is read as, the first of which is zeros; None
        without `reads_goal`."""
        return None if self.goal_reader is None else self.goal_reader.vectors

    def set_goal_vectors(self, vectors: np.ndarray) -> None:
        """Set the vectors [G, 384] of goals 0 to G - 1 that a network with `reads_goal` reads; see `GoalReader`."""
        if self.goal_reader is not None:
            self.goal_reader.set_vectors(vectors)

    @torch.no_grad()
    def rescale_values(self, mean: Tensor, scale: Tensor) -> None:
        """Set the units of the value head's output to `scale` around `mean` (0-dim), keeping values (PopArt, eq. 9)."""
        ratio = self.value_scale / scale
        self.value_head.bias.mul_(ratio).add_((self.value_mean - mean) / scale)
        self.value_head.weight.mul_(ratio)
        if self.skip_head is not None:
            self.skip_head.weight[-1:].mul_(ratio)
        self.value_mean.copy_(mean)
        self.value_scale.copy_(scale)

    def _append(
        self,
        encoded: list[RepeatedRows],
        obs: Mapping[str, Tensor],
        caches: Mapping[str, EncodingCache] = {},
        *,
        reuses: bool,
    ) -> list[RepeatedRows]:
        """The encoder's features, followed by those of the previous action and reward and of the goal, if observed."""
        encoded += [
            encode_rows(obs[name].unsqueeze(1), functools.partial(encode_previous_step, name, entry), reuses=reuses)
            for name, entry in self._previous.items()
        ]
        if self.goal_reader is not None:
            encoded.append(self.goal_reader.read(obs[GOAL], caches.get(GOAL), reuses=reuses))
        return encoded

    def _append_rows(
        self, features: Tensor, obs: Mapping[str, Tensor], caches: Mapping[str, EncodingCache] = {}
    ) -> tuple[Tensor, Tensor]:
        """`_append` to the encoder's features [N, F], as [N, features]: what the core reads, and what heads read that
        skip it."""
        rows = self._append([RepeatedRows(features)], obs, caches, reuses=False)
        read = torch.cat([branch.distinct for branch in rows], -1) if len(rows) > 1 else features
        is_whole_read = self.core.kind == "none" or self.skip_head is not None
        whole = self._for_heads(read) if is_whole_read else read
        return whole if self.core.kind == "none" else read, whole

    def _for_heads(self, read: Tensor) -> Tensor:
        """Features [..., F] as heads read them that skip the core: with the products of goal and observation."""
        return read if self.goal_reader is None else self.goal_reader.with_products(read)

    def _after_core(self, outputs: Tensor, core_state: dict[str, Tensor], features: Tensor | None) -> PolicyOutput:
        """The heads over the core's outputs [T, B, H] and, if they skip the core, the encoder's features [T, B, F]."""
        # The heads stay in float32: they are small, and bf16 would round values and log-probabilities to three digits.
        with torch.autocast(outputs.device.type, enabled=False):
            outputs = outputs.float()
            logits, values = self.policy_head(outputs), self.value_head(outputs).squeeze(-1)
            if self.skip_head is not None:
                assert features is not None
                beside = self.skip_head(features.float())
                logits, values = logits + beside[..., :-1], values + beside[..., -1]
            return PolicyOutput(logits, values * self.value_scale + self.value_mean, core_state, outputs)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicySnapshot:
    """Weights at one version (learner -> workers; latest only)."""

    weights: dict[str, np.ndarray]  # parameter name -> f32 array; may be read-only
    policy_version: Version  # (run_epoch, n)


def snapshot(net: PolicyNet, policy_version: Version) -> PolicySnapshot:
    """A copy of the net's weights in host memory."""
    weights = {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in net.state_dict().items()}
    return PolicySnapshot(weights=weights, policy_version=policy_version)


def load_weights(net: PolicyNet, weights: Mapping[str, np.ndarray]) -> None:
    """Copy weights by parameter name into the net; raises RuntimeError for names or shapes of another network."""
    units = {"value_mean": np.float32(0), "value_scale": np.float32(1)}  # of weights that do not have them
    net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in {**units, **weights}.items()})


def resolve_precision(precision: str, device: torch.device, net: nn.Module, what: str) -> torch.dtype | None:
    """The autocast dtype for `bf16`, `fp32` or `auto`; None is float32 without autocast. `auto` is bf16 if the largest
    layer of `net` is clearly faster with it on `device`, which is logged for `what`."""
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision: got {precision!r}, wanted one of auto, bf16, fp32")
    wants_bf16 = precision == "bf16" or (precision == "auto" and bfloat16_is_faster(device, *_largest_layer(net), what))
    return torch.bfloat16 if wants_bf16 else None


def _largest_layer(net: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of the largest weight matrix; embedding tables do not count, as they are only looked up."""
    tables = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    matrices = [weights.shape for weights in net.parameters() if weights.dim() == 2 and id(weights) not in tables]
    outputs, inputs = max(matrices, key=lambda shape: shape.numel(), default=(256, 256))
    return inputs, outputs


def bound_kept_kernels(number: int) -> None:
    """Limit the kernel caches of torch and of oneDNN, 1024 by default, to the newest `number` of operations and shapes,
    instead of every number of rows that a CPU ever meets. Call it before the process first computes; values set by the
    user are kept."""
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(number))
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(number))
