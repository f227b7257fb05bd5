"""The rollout worker: steps B environments under the newest policy it has received and returns rollouts and caption
reports. Where the policy is computed elsewhere, one part of the environments steps while the other waits for it.

Invariant: a rollout is made under one set of weights, its captions and rewards belong to the actions that led to them,
and every caption counted in it is in the report returned with it.
"""

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol

import numpy as np

from actors.captions import CaptionTracker
from actors.channels import Channels
from actors.environments.errors import EnvironmentFailure, traceback_of
from actors.environments.split import SplitEnvironment
from actors.environments.vector import VectorEnvironment, VectorStep
from actors.goals.entry import GOAL
from actors.goals.keeper import GoalKeeper
from actors.goals.sheet import GoalSheet
from actors.policy import PolicySnapshot
from actors.rollout import Acknowledgement, CaptionReport, EpisodeStatistics, Rollout, Version
from configs.schema import ActorsConfig

LOG = logging.getLogger(__name__)
MAX_LOSSES = 3
"""Environment failures allowed in one rollout, per environment; with more, rebuilding does not help."""


class Inference(Protocol):
    """The policy for the parts of a worker's environments: `actors.inference.BatchedInference` in this process, for one
    part, or `actors.central.client.CentralInference`. See those."""

    policy_version: Version | None

    def load(self, snapshot: PolicySnapshot) -> None:
        """Use the snapshot from the next rollout on."""

    def load_goals(self, vectors: np.ndarray) -> None:
        """Use these goal vectors [G, D] from the next rollout on, if the policy reads goals."""

    def rollout(self, num_steps: int) -> AbstractContextManager[None]:
        """Context for steps under one version, which is then in `policy_version`."""

    def ask(self, part: int, obs: Mapping[str, np.ndarray]) -> None:
        """Begin a step of a part."""

    def answer(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """The logits and values of the step that was begun."""

    def values(self, obs: Mapping[str, np.ndarray], rows: Sequence[int]) -> np.ndarray:
        """Values of other observations in the core states of the environments `rows`, of one part."""

    def reset(self, rows: Sequence[int]) -> None:
        """Zero the core states of the environments `rows`, of one part."""

    def core_state(self) -> dict[str, np.ndarray]:
        """A copy of the core states."""

    def load_core_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore such a copy."""

    def close(self) -> None:
        """Release connections."""


class RolloutWorker:
    """Collects rollouts; a plain class, called in this process or by a Ray actor."""

    def __init__(
        self,
        env: VectorEnvironment | SplitEnvironment,
        inference: Inference,
        captions: CaptionTracker,
        config: ActorsConfig,
        *,
        worker_id: str,
        seed: int,
        channels: Channels | None = None,
        goals: GoalKeeper | None = None,
    ) -> None:
        """`seed` is for action sampling only; `inference` is of the environment's parts, and closed with the worker;
        `channels` (None: none) are what terms read beside captions; `goals` (None: none) gives goals to pursue."""
        self.env, self.captions, self.config, self.worker_id = env, captions, config, worker_id
        self.channels, self.goals = channels or Channels(), goals
        self.inference = inference
        self._parts = _parts(env)
        self._rng = np.random.default_rng(seed)
        self._sequence_number = 0
        self._returns = np.zeros(env.num_envs, np.float64)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._obs: dict[str, np.ndarray] | None = None

    def collect(
        self, snapshot: PolicySnapshot | None, acknowledgement: Acknowledgement | None, goals: GoalSheet | None = None
    ) -> tuple[Rollout, CaptionReport]:
        """T steps under `snapshot` (None: the weights that the inference has), with goals of the sheet `goals` (None:
        the last one); raises RuntimeError without any weights."""
        began = time.perf_counter()
        if acknowledgement is not None:
            self.captions.acknowledge(acknowledgement)
            self.channels.acknowledge(acknowledgement)
            if self.goals is not None:
                self.goals.acknowledge(acknowledgement)
        if goals is not None and self.goals is not None and self.goals.take_sheet(goals):
            self.inference.load_goals(goals.vectors)
        if snapshot is not None and snapshot.policy_version != self.inference.policy_version:
            self.inference.load(snapshot)
        timings = {"env": 0.0, "inference": 0.0, "other": 0.0}
        try:
            with self.inference.rollout(self.config.rollout_steps):
                version = self.inference.policy_version
                if version is None:
                    raise RuntimeError("collect was called before any policy snapshot; give one with the first call")
                rollout = self._play(version, timings)
        except EnvironmentFailure as failure:
            LOG.error("%s\n%s", failure, traceback_of(failure))
            raise
        number = self._sequence_number
        texts, counts = self.captions.report(number)
        goal_counts, missions = self.goals.report(number) if self.goals is not None else (None, {})
        report = CaptionReport(
            texts=texts,
            counts=counts,
            worker_id=self.worker_id,
            sequence_number=number,
            channels=self.channels.report(number) | missions,
            goals=goal_counts,
        )
        self._sequence_number += 1
        timings["other"] = time.perf_counter() - began - timings["env"] - timings["inference"]
        return rollout, report

    def _play(self, policy_version: Version, timings: dict[str, float]) -> Rollout:
        now = time.perf_counter
        began = now()
        current = self._begin_episodes() if self._obs is None else self._obs
        timings["env"] += now() - began
        num_steps, num_envs, spec = self.config.rollout_steps, self.env.num_envs, self.env.spec
        obs = {
            name: np.empty((num_steps + 1, num_envs, *array.shape), array.dtype)
            for name, array in spec.observations.items()
        }
        steps = (num_steps, num_envs)
        actions, ids, counts = np.empty(steps, np.int64), np.empty(steps, np.uint64), np.empty(steps, np.int32)
        logits, values = np.full((*steps, spec.num_actions), np.nan, np.float32), np.full(steps, np.nan, np.float32)
        final_values, rewards = np.full(steps, np.nan, np.float32), np.full(steps, np.nan, np.float32)
        terminated, truncated = np.zeros(steps, bool), np.zeros(steps, bool)
        # Gumbel-max sampling: argmax(logits - log E) with E exponential is a draw from softmax(logits).
        noise = np.log(self._rng.standard_exponential(logits.shape, np.float32) + 1e-30)
        core_state = self.inference.core_state()
        signals = self.channels.arrays(num_steps)
        episodes: list[EpisodeStatistics] = []
        episode_ends: list[tuple[int, int]] = []
        lost: set[int] = set()
        num_losses = 0
        for name, array in current.items():
            obs[name][0] = array
        for part, (_, rows) in enumerate(self._parts):
            self.inference.ask(part, {name: array[0, rows] for name, array in obs.items()})
        for t, part in itertools.product(range(num_steps), range(len(self._parts))):
            env, rows = self._parts[part]
            began = now()
            logits[t, rows], values[t, rows] = self.inference.answer(part)
            inferred = now()
            np.subtract(logits[t, rows], noise[t, rows], out=noise[t, rows]).argmax(-1, out=actions[t, rows])
            chosen = now()
            step = env.step(actions[t, rows], {name: array[t + 1, rows] for name, array in obs.items()})
            timings["env"] += now() - chosen
            timings["inference"] += inferred - began
            rewards[t, rows], terminated[t, rows], truncated[t, rows] = step.rewards, step.terminated, step.truncated
            ids[t, rows], counts[t, rows] = self.captions.observe(step.captions, rows.start)
            self.channels.observe(signals, t, rows, actions[t, rows], step, env.states, env.features)
            self._returns[rows] += step.rewards
            self._lengths[rows] += 1
            if self.goals is not None:
                items = {name: array[t, rows] for name, array in (*signals.items(), ("caption", ids))}
                self.goals.step(rows, step, items, self._returns, self.channels.state_ids, env.missions)
            if step.ends:
                self._end_episodes(step, rows.start, final_values[t], episodes)
                episode_ends += [(t, rows.start + end.index) for end in step.ends]
            if step.losses:  # no statistics: these episodes did not end
                losses = {rows.start + index: reset_caption for index, reset_caption in step.losses.items()}
                for index, reset_caption in losses.items():
                    self.captions.restart(index, reset_caption)
                self._forget([*losses])
                lost |= losses.keys()
                num_losses += len(losses)
                if num_losses > MAX_LOSSES * num_envs:
                    self._refuse(num_losses)
            if t + 1 < num_steps:
                self.inference.ask(part, step.obs)
        self._obs = {name: array[num_steps] for name, array in obs.items()}
        environment_errors, environment_error = self.env.take_errors()
        return Rollout(
            obs=obs, actions=actions, behaviour_logits=logits, behaviour_values=values, final_values=final_values,
            extrinsic_rewards=rewards, terminated=terminated, truncated=truncated, caption_ids=ids,
            caption_counts=counts, core_state=core_state, policy_version=policy_version, worker_id=self.worker_id,
            sequence_number=self._sequence_number, episodes=tuple(episodes), episode_ends=tuple(episode_ends),
            timings=timings, lost=tuple(sorted(lost)), environment_errors=environment_errors,
            environment_error=environment_error, signals=signals,
            environment_notices=(*self.env.take_notices(), *self.channels.take_notices()),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """State from which the next rollout is bit-identical, if the environments can save theirs."""
        return {
            "env": self.env.state_dict(),
            "captions": self.captions.state_dict(),
            "core": self.inference.core_state(),
            "sequence_number": self._sequence_number,
            "rng": self._rng.bit_generator.state,
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            **({"channels": self.channels.state_dict()} if self.channels else {}),
            **({"goals": self.goals.state_dict()} if self.goals is not None else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; environments that cannot restore their state start new episodes."""
        self._rng.bit_generator.state = state["rng"]
        self.captions.load_state_dict(state["captions"])
        if self.channels:
            self.channels.load_state_dict(state["channels"])
        if self.goals is not None:
            self.goals.load_state_dict(state["goals"])
        self._obs = self.env.load_state_dict(state["env"])
        if self._obs is not None:
            self.inference.load_core_state(state["core"])
            self.channels.resume(self.env.states, self.env.features)
            self._observe_goals(self._obs)
            self._returns[:], self._lengths[:] = state["returns"], state["lengths"]
            # Number 0 means that new episodes have begun.
            self._sequence_number = state["sequence_number"]

    def close(self) -> None:
        """Release the environments and the inference."""
        self.env.close()
        self.inference.close()

    def _begin_episodes(self) -> dict[str, np.ndarray]:
        obs, raw_captions = self.env.reset()
        for index, raw_caption in enumerate(raw_captions):
            self.captions.restart(index, raw_caption)
        self.channels.begin(self.env.states, self.env.features)
        if self.goals is not None:
            self.goals.begin(self.channels.state_ids, self.env.missions)
        return self._observe_goals(obs)

    def _observe_goals(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Observations [B, ...] with the goals that are pursued, where the policy reads them."""
        if self.goals is not None and GOAL in obs:
            obs[GOAL] = self.goals.entries
        return obs

    def _end_episodes(
        self, step: VectorStep, first: int, final_values: np.ndarray, episodes: list[EpisodeStatistics]
    ) -> None:
        """Value truncated episodes' last observations, record statistics, and start the next episodes, of a part whose
        first environment has number `first`."""
        cut = [end for end in step.ends if step.truncated[end.index]]
        if cut:
            rows = [first + end.index for end in cut]
            last_obs = {name: np.stack([end.final_obs[name] for end in cut]) for name in step.obs}
            final_values[rows] = self.inference.values(last_obs, rows)
        for end in step.ends:
            i = first + end.index
            total, length, terminated = float(self._returns[i]), int(self._lengths[i]), bool(step.terminated[end.index])
            episodes.append(
                EpisodeStatistics(episode_return=total, length=length, terminated=terminated, info=end.info)
            )
            self.captions.restart(i, end.reset_caption)
        self._forget([first + end.index for end in step.ends])

    def _refuse(self, num_losses: int) -> NoReturn:
        error = self.env.take_errors()[1].strip()
        LOG.error("the environments of worker %s fail repeatedly:\n%s", self.worker_id, error)
        what = f"environments failed {num_losses} times in one rollout of {self.env.num_envs}"
        raise RuntimeError(f"{what}, the first time: {error.splitlines()[-1]}")

    def _forget(self, indices: list[int]) -> None:
        self._returns[indices] = 0.0
        self._lengths[indices] = 0
        self.inference.reset(indices)


def _parts(env: VectorEnvironment | SplitEnvironment) -> list[tuple[VectorEnvironment, slice]]:
    """The vectors that are stepped one after the other, and their rows."""
    parts = env.parts if isinstance(env, SplitEnvironment) else (env,)
    stops = itertools.accumulate(part.num_envs for part in parts)
    return [(part, slice(stop - part.num_envs, stop)) for part, stop in zip(parts, stops, strict=True)]
