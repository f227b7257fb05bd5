"""The learner: owns the network in training and its optimiser, and turns rollouts and a reward table into new weights.

Invariant: a version is a finite update: a gradient step whose loss or gradient is not finite changes nothing but a counter. On
a CPU the same state and the same rollouts give the same weights, bit for bit.
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

from actors.devices import resolve_precision
from actors.environments.vector import EnvironmentSpec
from actors.policy import PolicyNet, PolicyOutput, PolicySnapshot, load_weights, snapshot
from actors.rollout import Rollout, Version
from configs.devices import resolve_device
from configs.schema import LearnerConfig, PolicyConfig, RewardConfig
from learner.batch import Batch, BatchBuffers
from learner.diagnostics import core_metrics, mean_kl, state_information
from learner.loss import action_log_probs, clamped_ratios, policy_loss
from learner.memory import keep_freed_memory
from learner.rewards import RewardMixer
from learner.vtrace import ReturnScale, VtraceTargets, vtrace_targets
from reward_models.table import RewardTable

LOG = logging.getLogger(__name__)
PROBE_INTERVAL, PROBE_COLUMNS = 8, 8
"""One update in so many is measured by what it does to the policy in so many environments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one update says of itself (learner -> metrics)."""

    metrics: dict[str, float]
    """Finite metrics by metric name; one that this batch does not define (of a skipped update, say) is left out."""
    lags: list[int]
    """Policy lag of each rollout, in versions."""
    intrinsic: list[np.ndarray]
    """Each rollout's intrinsic rewards [T, B], k_int included."""
    skipped_fraction: float
    """Share of its gradient steps that were skipped, because loss or gradient were not finite."""
    timings: dict[str, float]
    """Seconds by stage: `transfer` (joining the rollouts on the device), `relabel` (rewards), `train` (all else)."""


class Learner:
    """V-trace and PPO over rollouts; `step` moves `policy_version` on by one, unless the update had to be skipped."""

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
        """Raises ValueError for a network that cannot read the observations, and for a device that is not there."""
        self.config, self.run_epoch, self._seed = config, run_epoch, seed
        self.device = resolve_device(config.device, "learner.device")
        keep_freed_memory()
        self._buffers = BatchBuffers(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = PolicyNet(spec, policy).to(self.device)
        self._precision = resolve_precision(config.precision, self.device, self.net, "the learner")
        self._optimizer = torch.optim.Adam(
            self.net.parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=True,
        )
        self._rewards = RewardMixer(reward)
        self._return_scale = ReturnScale()
        self._updates = 0
        self._gradient_steps = 0
        self._skipped = 0

    @property
    def policy_version(self) -> Version:
        """Of the weights as they are now."""
        return self.run_epoch, self._updates

    @property
    def _precision_name(self) -> str:
        return "bf16" if self._precision is not None else "fp32"

    def step(self, rollouts: Sequence[Rollout], table: RewardTable, progress: float = 0.0) -> StepResult:
        """One update on the rollouts, all steps of which count equally but those of lost environments, which do not count; rewards are
        computed here, with `table`. `progress`, in [0, 1], is the share of the run's steps that lie behind it."""
        began = time.perf_counter()
        batch = self._buffers.join([rollout.without_lost() for rollout in rollouts if rollout.num_steps])
        transfer_s = time.perf_counter() - began
        lags = [self._updates - rollout.policy_version[1] for rollout in rollouts]
        looked_up = time.perf_counter()
        intrinsic_scale, rewards = self._rewards.intrinsic_scale, self._rewards.mix(rollouts, table)
        kept = np.concatenate([rollout.kept for rollout in rollouts])
        relabel_s = time.perf_counter() - looked_up
        updates, taken, skipped = self._updates, self._gradient_steps, self._skipped
        metrics = self._train(batch, torch.from_numpy(rewards.total[:, kept]).to(self.device), progress)
        if self._updates > updates:
            self._rewards.note_paid(rollouts, rewards)
        metrics["intrinsic_reward_mean"] = float(rewards.intrinsic[:, kept].mean())
        metrics["intrinsic_scale"] = intrinsic_scale
        metrics["intrinsic_unknown_fraction"] = rewards.unknown_fraction
        return StepResult(
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
            lags=lags,
            intrinsic=np.split(rewards.intrinsic, np.cumsum([len(rollout.kept) for rollout in rollouts])[:-1], axis=1),
            skipped_fraction=(self._skipped - skipped) / max(self._gradient_steps - taken + self._skipped - skipped, 1),
            timings={
                "relabel": relabel_s,
                "transfer": transfer_s,
                "train": time.perf_counter() - began - transfer_s - relabel_s,
            },
        )

    def pass_over(self, rollout: Rollout, table: RewardTable) -> None:
        """A rollout that is dropped: nothing is learnt from it, but its episodes went on."""
        self._rewards.pass_over(rollout, table)

    def metrics(self) -> dict[str, float]:
        """Counters over the whole run: `learner_updates`, `updates_skipped_nonfinite`."""
        return {"learner_updates": self._gradient_steps, "updates_skipped_nonfinite": self._skipped}

    def snapshot(self) -> PolicySnapshot:
        """A copy of the weights under their version."""
        return snapshot(self.net, self.policy_version)

    def state_dict(self) -> dict[str, Any]:
        """Copies of weights and Adam's moments by parameter name, and counters: nested dicts of arrays and JSON values."""
        return {
            "run_epoch": self.run_epoch,
            "updates": self._updates,
            "gradient_steps": self._gradient_steps,
            "skipped": self._skipped,
            "precision": self._precision_name,
            "return_scale": self._return_scale.state_dict(),
            "rewards": self._rewards.state_dict(),
            "weights": self.snapshot().weights,
            "adam": {
                name: {key: tensor.cpu().numpy().copy() for key, tensor in self._optimizer.state[parameter].items()}
                for name, parameter in self.net.named_parameters()
                if parameter in self._optimizer.state
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from `state_dict`, in this learner's own epoch.

        Raises RuntimeError for another network's state, and for one of this epoch or a later one, whose versions would recur.
        """
        if state["run_epoch"] >= self.run_epoch:
            raise RuntimeError(
                f"the state is of run epoch {state['run_epoch']}, this learner of {self.run_epoch}:"
                " each start of a run needs an epoch of its own, higher than all before"
            )
        if (before := state.get("precision", self._precision_name)) != self._precision_name:
            LOG.warning(
                "this run computed in %s so far and goes on in %s: its updates round otherwise",
                before,
                self._precision_name,
            )
        load_weights(self.net, state["weights"])
        moments = {
            index: {key: torch.from_numpy(np.array(array)) for key, array in state["adam"][name].items()}
            for index, (name, _) in enumerate(self.net.named_parameters())
            if name in state["adam"]
        }
        self._optimizer.load_state_dict(
            {"state": moments, "param_groups": self._optimizer.state_dict()["param_groups"]}
        )
        self._rewards.load_state_dict(state["rewards"])
        self._updates, self._skipped = state["updates"], state["skipped"]
        self._gradient_steps = state.get("gradient_steps", self._updates)
        self._return_scale.load_state_dict(state.get("return_scale"))

    def _train(self, batch: Batch, rewards: Tensor, progress: float) -> dict[str, float]:
        """All gradient steps on the batch; the means of their metrics."""
        config, before = self.config, self._gradient_steps
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - (1 - config.final_learning_rate_fraction) * progress)
        is_probed = self._updates % PROBE_INTERVAL == 0
        is_single = config.epochs * config.minibatches == 1
        with torch.set_grad_enabled(is_single), self._autocast():
            output = self.net(batch.obs, batch.core_state, batch.reset_before)
        targets = self._targets(batch, output, rewards)
        logits_before = output.logits[:, :PROBE_COLUMNS].detach()
        metrics: list[dict[str, Tensor]] = []
        for epoch in range(config.epochs):
            for columns in self._minibatches(rewards.shape[1], epoch):
                part, of_part = (
                    (batch, targets)
                    if columns is None
                    else (batch.columns(columns), targets.columns(columns.to(self.device)))
                )
                if not is_single:
                    with self._autocast():
                        output = self.net(part.obs, part.core_state, part.reset_before)
                loss, of_step = self._loss(part, output, of_part)
                of_step["grad_norm"] = self._apply(loss)
                of_step["grad_clipped_fraction"] = (of_step["grad_norm"] > config.max_grad_norm).float()
                if epoch:  # of a net that has seen these very steps
                    del of_step["explained_variance"]
                metrics.append(of_step)
        if self._gradient_steps > before:
            self._updates += 1
            if config.normalize_returns:
                self._return_scale.observe(targets.vs)
                self.net.rescale_values(*self._return_scale.unit(self.device))
        of_batch = {"policy_state_information": state_information(batch.behaviour_logits)}
        if is_probed:
            of_batch |= self._compare(batch, logits_before)
        means = {
            name: torch.stack([of_step[name] for of_step in metrics if name in of_step]).nanmean()
            for name in metrics[0]
        }
        return _numbers({**means, **of_batch})

    def _minibatches(self, num_columns: int, epoch: int) -> list[Tensor | None]:
        """Which environments [N] i64 each gradient step of a pass is made on; None: all, as they are."""
        number = min(self.config.minibatches, num_columns)
        if number == 1:
            return [None]
        order = np.random.default_rng((self._seed, self._updates, self._skipped, epoch)).permutation(num_columns)
        return [torch.from_numpy(columns) for columns in np.array_split(order, number)]

    @torch.no_grad()
    def _targets(self, batch: Batch, output: PolicyOutput, rewards: Tensor) -> VtraceTargets:
        """Of the batch with `rewards` [T, B], from what the net says of it: its values are newer than the worker's. Only an episode's own
        last observation, which the rollout does not hold, keeps the worker's value."""
        config = self.config
        return vtrace_targets(
            ratios=self._ratios(batch, output),
            rewards=rewards,
            values=output.values[:-1],
            next_values=output.values[1:],
            terminated=batch.terminated,
            truncated=batch.truncated,
            final_values=batch.final_values,
            gamma=config.gamma,
            rho_clip=config.vtrace_rho_clip,
            c_clip=config.vtrace_c_clip,
            trace_lambda=config.trace_lambda,
            rho_weighted=config.rho_weighted_advantage,
        )

    def _ratios(self, batch: Batch, output: PolicyOutput) -> Tensor:
        """pi / mu [T, B] of the actions taken."""
        behaviour_log_probs = action_log_probs(batch.behaviour_logits, batch.actions)
        return clamped_ratios(
            action_log_probs(output.logits[:-1], batch.actions), behaviour_log_probs, self.config.ratio_clamp
        )

    def _loss(self, batch: Batch, output: PolicyOutput, targets: VtraceTargets) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what the net says of the batch, and its metrics."""
        return policy_loss(
            logits=output.logits[:-1],
            ratios=self._ratios(batch, output),
            values=output.values[:-1],
            behaviour_values=batch.behaviour_values,
            targets=targets,
            config=self.config,
            value_scale=self.net.value_scale,
        )

    def _apply(self, loss: Tensor) -> Tensor:
        """Take the optimiser's step if loss and gradient are finite; the gradient's norm before clipping."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.config.max_grad_norm)
        if bool(torch.isfinite(loss.detach() + grad_norm)):
            self._optimizer.step()
            self._gradient_steps += 1
        else:
            self._skipped += 1
        return grad_norm

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self._precision or torch.bfloat16, enabled=self._precision is not None)

    @torch.no_grad()
    def _compare(self, batch: Batch, logits_before: Tensor) -> dict[str, Tensor]:
        """Metrics of the update that turned `logits_before` [T+1, N, A], of the batch's first environments, into the net's, and of the core."""
        part = batch.columns(torch.arange(logits_before.shape[1]))
        with self._autocast():
            after = self.net(part.obs, part.core_state, part.reset_before)
        metrics = {"update_kl": mean_kl(logits_before, after.logits)}
        return metrics | core_metrics(after.core_outputs) if self.net.core.kind != "none" else metrics


def _numbers(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics as numbers, with one wait for the device."""
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))
