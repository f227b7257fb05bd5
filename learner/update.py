"""The learner: owns the network in training and its optimiser, and turns rollouts and a reward table into new weights.

Invariant: a version is a finite update: one whose loss or gradient is not finite changes nothing but a counter. On a CPU the
same state and the same rollouts give the same weights, bit for bit.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.devices import resolve_device, resolve_precision
from actors.environment import EnvironmentSpec
from actors.policy import PolicyNet, PolicyOutput, PolicySnapshot, snapshot
from actors.rollout import Rollout, Version
from configs.schema import LearnerConfig, PolicyConfig, RewardConfig
from learner.batch import Batch, BatchBuffers
from learner.loss import action_log_probs, clamped_ratios, policy_loss
from learner.memory import keep_freed_memory
from learner.rewards import RewardMixer
from learner.vtrace import vtrace_targets
from reward_models.table import RewardTable


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one update says of itself (learner -> metrics)."""

    metrics: dict[str, float]
    """Finite figures by metric name; one that this batch does not define (of a skipped update, say) is left out."""
    lags: list[int]
    """Policy lag of each rollout, in versions."""
    intrinsic: list[np.ndarray]
    """Each rollout's intrinsic rewards [T, B], k_int included."""
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
        self.config, self.run_epoch = config, run_epoch
        self.device = resolve_device(config.device, "learner.device")
        self._autocast = resolve_precision(config.precision, self.device)
        keep_freed_memory()
        self._buffers = BatchBuffers(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = PolicyNet(spec, policy).to(self.device)
        self._optimizer = torch.optim.Adam(
            self.net.parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=True,
        )
        self._rewards = RewardMixer(reward)
        self._updates = 0
        self._skipped = 0

    @property
    def policy_version(self) -> Version:
        """Of the weights as they are now."""
        return self.run_epoch, self._updates

    def step(self, rollouts: Sequence[Rollout], table: RewardTable) -> StepResult:
        """One update on the rollouts, all steps of which count equally but those of lost environments, which do not count; rewards are
        computed here, with `table`."""
        began = time.perf_counter()
        batch = self._buffers.join([rollout.without_lost() for rollout in rollouts if rollout.num_steps])
        transfer_s = time.perf_counter() - began
        lags = [self._updates - rollout.policy_version[1] for rollout in rollouts]
        with torch.autocast(self.device.type, self._autocast or torch.bfloat16, enabled=self._autocast is not None):
            output = self.net(batch.obs, batch.core_state, batch.reset_before)
        # A GPU is still at work on the above while rewards are looked up here.
        looked_up = time.perf_counter()
        intrinsic_scale, rewards = self._rewards.intrinsic_scale, self._rewards.mix(rollouts, table)
        kept = np.concatenate([rollout.kept for rollout in rollouts])
        relabel_s = time.perf_counter() - looked_up
        loss, figures = self._loss(batch, output, torch.from_numpy(rewards.total[:, kept]).to(self.device))
        updates = self._updates
        figures["grad_norm"] = self._apply(loss)
        if self._updates > updates:
            self._rewards.note_paid(rollouts, rewards)
        metrics = dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))
        metrics["intrinsic_reward_mean"] = float(rewards.intrinsic[:, kept].mean())
        metrics["intrinsic_scale"] = intrinsic_scale
        metrics["intrinsic_unknown_fraction"] = rewards.unknown_fraction
        return StepResult(
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
            lags=lags,
            intrinsic=np.split(rewards.intrinsic, np.cumsum([len(rollout.kept) for rollout in rollouts])[:-1], axis=1),
            timings={"relabel": relabel_s, "transfer": transfer_s, "train": time.perf_counter() - began - transfer_s - relabel_s},
        )

    def pass_over(self, rollout: Rollout, table: RewardTable) -> None:
        """A rollout that is dropped: nothing is learnt from it, but its episodes went on."""
        self._rewards.pass_over(rollout, table)

    def metrics(self) -> dict[str, float]:
        """Counters over the whole run: `learner_updates`, `updates_skipped_nonfinite`."""
        return {"learner_updates": self._updates, "updates_skipped_nonfinite": self._skipped}

    def snapshot(self) -> PolicySnapshot:
        """A copy of the weights under their version."""
        return snapshot(self.net, self.policy_version)

    def state_dict(self) -> dict[str, Any]:
        """Copies of weights and Adam's moments by parameter name, and counters: nested dicts of arrays and JSON values."""
        return {
            "run_epoch": self.run_epoch,
            "updates": self._updates,
            "skipped": self._skipped,
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
        self.net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state["weights"].items()})
        moments = {
            index: {key: torch.from_numpy(np.array(array)) for key, array in state["adam"][name].items()}
            for index, (name, _) in enumerate(self.net.named_parameters())
            if name in state["adam"]
        }
        self._optimizer.load_state_dict({"state": moments, "param_groups": self._optimizer.state_dict()["param_groups"]})
        self._rewards.load_state_dict(state["rewards"])
        self._updates, self._skipped = state["updates"], state["skipped"]

    def _loss(self, batch: Batch, output: PolicyOutput, rewards: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what the net says of the batch, with `rewards` [T, B], and its figures."""
        config, logits, values = self.config, output.logits[:-1], output.values[:-1]
        behaviour_log_probs = action_log_probs(batch.behaviour_logits, batch.actions)
        ratios = clamped_ratios(action_log_probs(logits, batch.actions), behaviour_log_probs, config.ratio_clamp)
        # Targets come from the values of the net in training, which are newer than the worker's; only an episode's own last
        # observation, which the rollout does not hold, keeps the worker's value.
        targets = vtrace_targets(
            ratios=ratios.detach(),
            rewards=rewards,
            values=values.detach(),
            next_values=output.values[1:].detach(),
            terminated=batch.terminated,
            truncated=batch.truncated,
            final_values=batch.final_values,
            gamma=config.gamma,
            rho_clip=config.vtrace_rho_clip,
            c_clip=config.vtrace_c_clip,
            rho_weighted=config.rho_weighted_advantage,
        )
        return policy_loss(
            logits=logits, ratios=ratios, values=values, behaviour_values=batch.behaviour_values, targets=targets, config=config
        )

    def _apply(self, loss: Tensor) -> Tensor:
        """Take the optimiser's step if loss and gradient are finite; the gradient's norm before clipping."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.config.max_grad_norm)
        if bool(torch.isfinite(loss.detach() + grad_norm)):
            self._optimizer.step()
            self._updates += 1
        else:
            self._skipped += 1
        return grad_norm
