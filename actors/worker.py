"""The rollout worker: steps B environments under the newest policy it has received and returns rollouts and caption
reports.

Invariant: a rollout is made under one set of weights, its captions and rewards belong to the actions that led to them,
and every caption counted in it is in the report returned with it.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from actors.captions import CaptionTracker
from actors.environments.errors import EnvironmentFailure, traceback_of
from actors.environments.vector import VectorEnvironment, VectorStep
from actors.inference import BatchedInference
from actors.policy import PolicyNet, PolicySnapshot
from actors.rollout import Acknowledgement, CaptionReport, EpisodeStatistics, Rollout, Version
from configs.schema import ActorsConfig

LOG = logging.getLogger(__name__)
MAX_LOSSES = 3
"""Environment failures allowed in one rollout, per environment; with more, rebuilding does not help."""


class RolloutWorker:
    """Collects rollouts; a plain class, called in this process or by a Ray actor."""

    def __init__(
        self,
        env: VectorEnvironment,
        net: PolicyNet,
        captions: CaptionTracker,
        config: ActorsConfig,
        *,
        worker_id: str,
        seed: int,
    ) -> None:
        """`seed` is for action sampling only. Raises ValueError for a device that does not exist."""
        self.env, self.captions, self.config, self.worker_id = env, captions, config, worker_id
        self.inference = BatchedInference(net, env.spec, env.num_envs, config)
        self._rng = np.random.default_rng(seed)
        self._policy_version: Version | None = None
        self._sequence_number = 0
        self._returns = np.zeros(env.num_envs, np.float64)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._obs: dict[str, np.ndarray] | None = None

    def collect(
        self, snapshot: PolicySnapshot | None, acknowledgement: Acknowledgement | None
    ) -> tuple[Rollout, CaptionReport]:
        """T steps under `snapshot` (None: the weights of the last call); raises RuntimeError without any weights."""
        began = time.perf_counter()
        if acknowledgement is not None:
            self.captions.acknowledge(acknowledgement)
        if snapshot is not None and snapshot.policy_version != self._policy_version:
            self.inference.load(snapshot)
            self._policy_version = snapshot.policy_version
        if self._policy_version is None:
            raise RuntimeError("collect was called before any policy snapshot; give one with the first call")
        timings = {"env": 0.0, "inference": 0.0, "other": 0.0}
        try:
            with self.inference.rollout(self.config.rollout_steps):
                rollout = self._play(self._policy_version, timings)
        except EnvironmentFailure as failure:
            LOG.error("%s\n%s", failure, traceback_of(failure))
            raise
        number = self._sequence_number
        texts, counts = self.captions.report(number)
        report = CaptionReport(texts=texts, counts=counts, worker_id=self.worker_id, sequence_number=number)
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
        episodes: list[EpisodeStatistics] = []
        episode_ends: list[tuple[int, int]] = []
        lost: set[int] = set()
        num_losses = 0
        for name, array in current.items():
            obs[name][0] = array
        for t in range(num_steps):
            began = now()
            logits[t], values[t] = self.inference.step(current)
            inferred = now()
            np.subtract(logits[t], noise[t], out=noise[t]).argmax(-1, out=actions[t])
            chosen = now()
            step = self.env.step(actions[t], {name: array[t + 1] for name, array in obs.items()})
            timings["env"] += now() - chosen
            timings["inference"] += inferred - began
            rewards[t], terminated[t], truncated[t] = step.rewards, step.terminated, step.truncated
            ids[t], counts[t] = self.captions.observe(step.captions)
            self._returns += step.rewards
            self._lengths += 1
            if step.ends:
                self._end_episodes(step, final_values[t], episodes)
                episode_ends += [(t, end.index) for end in step.ends]
            if step.losses:
                for index, reset_caption in step.losses.items():  # no statistics: these episodes did not end
                    self.captions.restart(index, reset_caption)
                self._forget(list(step.losses))
                lost |= step.losses.keys()
                num_losses += len(step.losses)
                if num_losses > MAX_LOSSES * num_envs:
                    self._refuse(num_losses)
            current = step.obs
        self._obs = current
        environment_errors, environment_error = self.env.take_errors()
        return Rollout(
            obs=obs, actions=actions, behaviour_logits=logits, behaviour_values=values, final_values=final_values,
            extrinsic_rewards=rewards, terminated=terminated, truncated=truncated, caption_ids=ids,
            caption_counts=counts, core_state=core_state, policy_version=policy_version, worker_id=self.worker_id,
            sequence_number=self._sequence_number, episodes=tuple(episodes), episode_ends=tuple(episode_ends),
            timings=timings, lost=tuple(sorted(lost)), environment_errors=environment_errors,
            environment_error=environment_error, environment_notices=self.env.take_notices(),
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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; environments that cannot restore their state start new episodes."""
        self._rng.bit_generator.state = state["rng"]
        self.captions.load_state_dict(state["captions"])
        self._obs = self.env.load_state_dict(state["env"])
        if self._obs is not None:
            self.inference.load_core_state(state["core"])
            self._returns[:], self._lengths[:] = state["returns"], state["lengths"]
            # Number 0 means that new episodes have begun.
            self._sequence_number = state["sequence_number"]

    def close(self) -> None:
        """Release the environments."""
        self.env.close()

    def _begin_episodes(self) -> dict[str, np.ndarray]:
        obs, raw_captions = self.env.reset()
        for index, raw_caption in enumerate(raw_captions):
            self.captions.restart(index, raw_caption)
        return obs

    def _end_episodes(self, step: VectorStep, final_values: np.ndarray, episodes: list[EpisodeStatistics]) -> None:
        """Value truncated episodes' last observations, record statistics, and start the next episodes."""
        cut = [end for end in step.ends if step.truncated[end.index]]
        if cut:
            rows = [end.index for end in cut]
            last_obs = {name: np.stack([end.final_obs[name] for end in cut]) for name in step.obs}
            final_values[rows] = self.inference.values(last_obs, rows)
        for end in step.ends:
            i = end.index
            total, length, terminated = float(self._returns[i]), int(self._lengths[i]), bool(step.terminated[i])
            episodes.append(
                EpisodeStatistics(episode_return=total, length=length, terminated=terminated, info=end.info)
            )
            self.captions.restart(i, end.reset_caption)
        self._forget([end.index for end in step.ends])

    def _refuse(self, num_losses: int) -> NoReturn:
        error = self.env.take_errors()[1].strip()
        LOG.error("the environments of worker %s fail repeatedly:\n%s", self.worker_id, error)
        what = f"environments failed {num_losses} times in one rollout of {self.env.num_envs}"
        raise RuntimeError(f"{what}, the first time: {error.splitlines()[-1]}")

    def _forget(self, indices: list[int]) -> None:
        self._returns[indices] = 0.0
        self._lengths[indices] = 0
        self.inference.reset(indices)
