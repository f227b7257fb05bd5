"""The learner: owns the training network and its optimiser, and turns rollouts and a reward table into new weights.

Invariant: a gradient step whose loss or gradient is not finite changes only a counter, so every version is finite. On a
CPU the same state and the same rollouts give the same weights, bit for bit.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.environments.vector import EnvironmentSpec
from actors.policy import PolicyNet, PolicyOutput, PolicySnapshot, load_weights, resolve_precision, snapshot
from actors.rollout import Rollout, Version
from configs.devices import resolve_device
from configs.schema import LearnerConfig, PolicyConfig, RewardConfig
from learner.batch import Batch, BatchBuffers, keep_freed_memory
from learner.loss import action_log_probs, clamped_ratios, core_metrics, mean_kl, policy_loss, state_information
from learner.rewards import PaidRewards, RewardMixer
from learner.vtrace import ReturnScale, VtraceTargets, vtrace_targets
from reward_models.fitting import load_optimizer_state, optimizer_state
from reward_models.table import RewardTable

LOG = logging.getLogger(__name__)
PROBE_INTERVAL, PROBE_COLUMNS = 8, 8
"""Every 8th update is compared with the policy before it, in the first 8 environments of the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The results of one update (learner -> metrics)."""

    metrics: dict[str, float]
    """Finite metrics by name; without those that this batch does not define (of a skipped update, for example)."""
    lags: list[int]  # policy lag of each rollout, in versions
    intrinsic: list[np.ndarray]  # each rollout's intrinsic rewards [T, B], k_int included
    skipped_fraction: float  # of the gradient steps, because loss or gradient were not finite
    timings: dict[str, float]
    """Seconds by stage: `transfer` (joining the rollouts on the device), `relabel` (rewards), `train` (the rest)."""


class Learner:
    """V-trace and PPO over rollouts; `step` increments `policy_version`, unless every gradient step was skipped."""

    def __init__(
        self,
        spec: EnvironmentSpec,
        policy: PolicyConfig,
        config: LearnerConfig,
        reward: RewardConfig,
        *,
        run_epoch: int,
        seed: int,
    ) -> None:
        """Raises ValueError for a network that cannot read the observations and for an unavailable device."""
        self.config, self.run_epoch, self._seed = config, run_epoch, seed
        self.device = resolve_device(config.device, "learner.device")
        keep_freed_memory()
        self._buffers = BatchBuffers(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = PolicyNet(spec, policy).to(self.device)
        self._precision = resolve_precision(config.precision, self.device, self.net, "the learner")
        self._precision_name = "fp32" if self._precision is None else "bf16"
        self._optimizer = torch.optim.Adam(
            self.net.parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=True,
        )
        self._rewards, self._return_scale = RewardMixer(reward), ReturnScale()
        self._updates = self._gradient_steps = self._skipped = 0

    @property
    def policy_version(self) -> Version:
        """The version of the current weights."""
        return self.run_epoch, self._updates

    def step(self, rollouts: Sequence[Rollout], table: RewardTable, progress: float = 0.0) -> StepResult:
        """One update on the rollouts, all of whose steps but those of lost environments have equal weight. Rewards are
        computed here, with `table`. `progress`, in [0, 1], is the fraction of the run's steps already consumed."""
        began = time.perf_counter()
        batch = self._buffers.join([rollout.without_lost() for rollout in rollouts if rollout.num_steps])
        joined = time.perf_counter()
        intrinsic_scale, rewards = self._rewards.intrinsic_scale, self._rewards.mix(rollouts, table)
        kept = np.concatenate([rollout.kept for rollout in rollouts])
        total, intrinsic = rewards.total[:, kept], rewards.intrinsic[:, kept]
        mixed = time.perf_counter()
        updates, taken, skipped = self._updates, self._gradient_steps, self._skipped
        metrics = self._train(batch, torch.from_numpy(total).to(self.device), progress)
        if self._updates > updates:
            self._rewards.note_paid(rollouts, intrinsic)
        metrics["intrinsic_reward_mean"] = float(intrinsic.mean())
        metrics["intrinsic_scale"] = intrinsic_scale
        metrics["intrinsic_unknown_fraction"] = rewards.unknown_fraction
        return StepResult(
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
            lags=[updates - rollout.policy_version[1] for rollout in rollouts],
            intrinsic=np.split(rewards.intrinsic, np.cumsum([len(rollout.kept) for rollout in rollouts])[:-1], axis=1),
            skipped_fraction=(self._skipped - skipped) / max(self._gradient_steps - taken + self._skipped - skipped, 1),
            timings={"relabel": mixed - joined, "transfer": joined - began, "train": time.perf_counter() - mixed},
        )

    def pass_over(self, rollout: Rollout, table: RewardTable) -> None:
        """Update the state of the running episodes with a rollout that is dropped."""
        self._rewards.pass_over(rollout, table)

    def metrics(self) -> dict[str, float]:
        """Counters over the whole run: `learner_updates`, `updates_skipped_nonfinite`."""
        return {"learner_updates": self._gradient_steps, "updates_skipped_nonfinite": self._skipped}

    @property
    def paid(self) -> PaidRewards:
        """The intrinsic reward that each caption earned in the whole run."""
        return self._rewards.paid

    def snapshot(self) -> PolicySnapshot:
        """A copy of the weights with their version."""
        return snapshot(self.net, self.policy_version)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the weights and Adam's moments by parameter name, and counters; arrays and JSON values only."""
        return {
            "run_epoch": self.run_epoch,
            "updates": self._updates,
            "gradient_steps": self._gradient_steps,
            "skipped": self._skipped,
            "precision": self._precision_name,
            "return_scale": self._return_scale.state_dict(),
            "rewards": self._rewards.state_dict(),
            "weights": self.snapshot().weights,
            "adam": optimizer_state(self.net, self._optimizer),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from `state_dict`, in this learner's own epoch. Raises RuntimeError for the state of another
        network, and for that of this epoch or a later one, whose versions would recur."""
        if state["run_epoch"] >= self.run_epoch:
            raise RuntimeError(
                f"the state is of run epoch {state['run_epoch']}, this learner of {self.run_epoch}:"
                " each start of a run needs an epoch of its own, higher than all before"
            )
        if (before := state.get("precision", self._precision_name)) != self._precision_name:
            after = self._precision_name
            LOG.warning(
                "this run computed in %s so far and goes on in %s: its updates are rounded differently", before, after
            )
        load_weights(self.net, state["weights"])
        load_optimizer_state(self.net, self._optimizer, state["adam"])
        self._rewards.load_state_dict(state["rewards"])
        self._updates, self._skipped = state["updates"], state["skipped"]
        self._gradient_steps = state.get("gradient_steps", self._updates)
        self._return_scale.load_state_dict(state.get("return_scale"))

    def _train(self, batch: Batch, rewards: Tensor, progress: float) -> dict[str, float]:
        """All gradient steps on the batch; one whose loss or gradient is not finite is not taken. The means of all
        steps' metrics, of which `grad_norm` is before clipping."""
        config, before = self.config, self._gradient_steps
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - (1 - config.final_learning_rate_fraction) * progress)
        is_probed = self._updates % PROBE_INTERVAL == 0
        is_single = config.epochs * config.minibatches == 1
        with torch.set_grad_enabled(is_single):
            output = self._forward(batch)
        targets = self._targets(batch, output, rewards)
        logits_before = output.logits[:, :PROBE_COLUMNS].detach()
        metrics: list[dict[str, Tensor]] = []
        for epoch in range(config.epochs):
            for columns in self._minibatches(rewards.shape[1], epoch):
                part, of_part = batch, targets
                if columns is not None:
                    part, of_part = batch.columns(columns), targets.columns(columns.to(self.device))
                if not is_single:
                    output = self._forward(part)
                loss, of_step = policy_loss(
                    logits=output.logits[:-1],
                    ratios=self._ratios(part, output),
                    values=output.values[:-1],
                    behaviour_values=part.behaviour_values,
                    targets=of_part,
                    config=config,
                    value_scale=self.net.value_scale,
                )
                self._optimizer.zero_grad(set_to_none=True)
                loss.backward()
                of_step["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.max_grad_norm)
                if bool(torch.isfinite(loss.detach() + of_step["grad_norm"])):
                    self._optimizer.step()
                    self._gradient_steps += 1
                else:
                    self._skipped += 1
                of_step["grad_clipped_fraction"] = (of_step["grad_norm"] > config.max_grad_norm).float()
                if epoch:  # the network has already trained on these steps
                    del of_step["explained_variance"]
                metrics.append(of_step)
        if self._gradient_steps > before:
            self._updates += 1
            if config.normalize_returns:
                self._return_scale.observe(targets.vs)
                self.net.rescale_values(*self._return_scale.unit(self.device))
        means = {name: torch.stack([step[name] for step in metrics if name in step]).nanmean() for name in metrics[0]}
        means["policy_state_information"] = state_information(batch.behaviour_logits)
        if is_probed:
            means |= self._compare(batch, logits_before)
        return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))  # one wait for the device

    def _minibatches(self, num_columns: int, epoch: int) -> list[Tensor | None]:
        """The environments [N] i64 of each gradient step of a pass; None means all, in order."""
        number = min(self.config.minibatches, num_columns)
        if number == 1:
            return [None]
        order = np.random.default_rng((self._seed, self._updates, self._skipped, epoch)).permutation(num_columns)
        return [torch.from_numpy(columns) for columns in np.array_split(order, number)]

    @torch.no_grad()
    def _targets(self, batch: Batch, output: PolicyOutput, rewards: Tensor) -> VtraceTargets:
        """V-trace targets of the batch with `rewards` [T, B], from the network's values, which are newer than the
        worker's. Only the last observation of a truncated episode, which the rollout does not contain, keeps the
        worker's value."""
        return vtrace_targets(
            ratios=self._ratios(batch, output),
            rewards=rewards,
            values=output.values[:-1],
            next_values=output.values[1:],
            terminated=batch.terminated,
            truncated=batch.truncated,
            final_values=batch.final_values,
            config=self.config,
        )

    def _ratios(self, batch: Batch, output: PolicyOutput) -> Tensor:
        """pi / mu [T, B] of the actions taken."""
        log_probs = action_log_probs(output.logits[:-1], batch.actions)
        behaviour_log_probs = action_log_probs(batch.behaviour_logits, batch.actions)
        return clamped_ratios(log_probs, behaviour_log_probs, self.config.ratio_clamp)

    def _forward(self, batch: Batch) -> PolicyOutput:
        enabled = self._precision is not None
        with torch.autocast(self.device.type, self._precision or torch.bfloat16, enabled=enabled):
            return self.net(batch.obs, batch.core_state, batch.reset_before)

    @torch.no_grad()
    def _compare(self, batch: Batch, logits_before: Tensor) -> dict[str, Tensor]:
        """The update's KL divergence from `logits_before` [T+1, N, A], of the first environments, and core metrics."""
        after = self._forward(batch.columns(torch.arange(logits_before.shape[1])))
        metrics = {"update_kl": mean_kl(logits_before, after.logits)}
        return metrics | core_metrics(after.core_outputs) if self.net.core.kind != "none" else metrics
