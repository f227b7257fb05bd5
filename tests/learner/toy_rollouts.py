"""Rollouts for learner tests: random ones of every shape, and ones played by a policy in a game small enough to write
down."""

import dataclasses
from typing import Any

import numpy as np
import torch

from actors.environments.vector import ArraySpec, EnvironmentSpec
from actors.policy import PolicyNet, PolicySnapshot, load_weights
from actors.rollout import Rollout
from configs.schema import PolicyConfig

SMALL_POLICY = PolicyConfig(network="mlp", core="lstm", core_size=32, hidden_size=32)
RIGHT, WRONG = 11, 12
"""Caption ids of `RecallGame`: what an answer shows on an episode's last step."""
NUM_CUES = 2
RECALL_SPEC = EnvironmentSpec(
    observations={"sign": ArraySpec(shape=(), dtype=np.dtype(np.int16), num_values=NUM_CUES + 1)}, num_actions=NUM_CUES
)


def random_rollout(
    num_steps: int = 5, num_envs: int = 3, *, seed: int = 0, read_only: bool = False, **changes: Any
) -> Rollout:
    """A well-formed rollout of `RECALL_SPEC` with episode ends of both kinds; `changes` replace fields."""
    rng = np.random.default_rng(seed)
    shape = (num_steps, num_envs)
    terminated, truncated = rng.random(shape) < 0.2, rng.random(shape) < 0.2
    truncated &= ~terminated
    fields: dict[str, Any] = {
        "obs": {"sign": rng.integers(0, NUM_CUES + 1, (num_steps + 1, num_envs)).astype(np.int16)},
        "actions": rng.integers(0, NUM_CUES, shape),
        "behaviour_logits": rng.normal(size=(*shape, NUM_CUES)).astype(np.float32),
        "behaviour_values": rng.normal(size=shape).astype(np.float32),
        "final_values": np.where(truncated, rng.normal(size=shape), np.nan).astype(np.float32),
        "extrinsic_rewards": rng.normal(size=shape).astype(np.float32),
        "terminated": terminated,
        "truncated": truncated,
        "caption_ids": rng.choice(np.array([0, RIGHT, WRONG], np.uint64), shape),
        "caption_counts": rng.integers(1, 4, shape).astype(np.int32),
        "core_state": {
            name: rng.normal(size=(num_envs, SMALL_POLICY.core_size)).astype(np.float32) for name in ("h", "c")
        },
        "policy_version": (0, 0),
        "worker_id": "0.0",
        "sequence_number": 0,
        "episodes": (),
        "episode_ends": (),
        "timings": {"env": 0.0, "inference": 0.0, "other": 0.0},
    }
    fields |= changes
    if read_only:
        for array in [
            *fields["obs"].values(),
            *fields["core_state"].values(),
            *(a for a in fields.values() if isinstance(a, np.ndarray)),
        ]:
            array.flags.writeable = False
    return Rollout(**fields)


class RecallGame:
    """B games played by one policy: a cue, three blank signs, then the answer, whose caption says whether it was the
    cue's.

    The cue can only be known from the core state, the answer is only rewarded by its caption, and that caption is on
    the episode's last step: so a policy learns this only if memory, resets, credit and captions at the end all work.
    """

    length = 4

    def __init__(self, num_envs: int, policy: PolicyConfig = SMALL_POLICY, seed: int = 0) -> None:
        self._net = PolicyNet(RECALL_SPEC, policy)
        self._rng = np.random.default_rng(seed)
        self._core = self._net.initial_state(num_envs)
        self._age = self._rng.integers(0, self.length, num_envs)  # out of step with each other, so resets fall anywhere
        self._cue = self._rng.integers(0, NUM_CUES, num_envs)

    @torch.no_grad()
    def collect(self, snapshot: PolicySnapshot, num_steps: int, sequence_number: int = 0) -> Rollout:
        """T steps of every game."""
        load_weights(self._net, snapshot.weights)
        core_state = {name: tensor.numpy().copy() for name, tensor in self._core.items()}
        columns: dict[str, list[np.ndarray]] = {
            name: [] for name in ("obs", "actions", "logits", "values", "terminated", "captions")
        }
        for _ in range(num_steps):
            sign = self._sign()
            logits, values, self._core = self._net.step({"sign": torch.from_numpy(sign)}, self._core)
            actions = (logits.numpy() + self._rng.gumbel(size=logits.shape)).argmax(-1)
            over = self._age == self.length - 1
            captions = np.where(over, np.where(actions == self._cue, RIGHT, WRONG), 0).astype(np.uint64)
            self._age = np.where(over, 0, self._age + 1)
            self._cue = np.where(over, self._rng.integers(0, NUM_CUES, len(over)), self._cue)
            for tensor in self._core.values():
                tensor[torch.from_numpy(over)] = 0.0
            for name, array in zip(
                columns, (sign, actions, logits.numpy(), values.numpy(), over, captions), strict=True
            ):
                columns[name].append(array)
        stacked = {name: np.stack(arrays) for name, arrays in columns.items() if name != "obs"}
        shape = stacked["actions"].shape
        return random_rollout(
            *shape,
            obs={"sign": np.stack([*columns["obs"], self._sign()])},
            actions=stacked["actions"],
            behaviour_logits=stacked["logits"],
            behaviour_values=stacked["values"],
            final_values=np.full(shape, np.nan, np.float32),
            extrinsic_rewards=np.zeros(shape, np.float32),
            terminated=stacked["terminated"],
            truncated=np.zeros(shape, bool),
            caption_ids=stacked["captions"],
            caption_counts=np.ones(shape, np.int32),
            core_state=core_state,
            policy_version=snapshot.policy_version,
            sequence_number=sequence_number,
        )

    def _sign(self) -> np.ndarray:
        return np.where(self._age == 0, self._cue, NUM_CUES).astype(np.int16)


def success_rate(rollout: Rollout) -> float:
    """Share of answers that were right."""
    return float((rollout.caption_ids == RIGHT).sum() / rollout.terminated.sum())


def at_version(rollout: Rollout, version: tuple[int, int], **changes: Any) -> Rollout:
    """The same rollout as if made under another policy version."""
    return dataclasses.replace(rollout, policy_version=version, **changes)
