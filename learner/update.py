"""The learner: owns the training network and its optimiser, and turns rollouts and reward tables into new weights.

Invariant: a gradient step whose loss or gradient is not finite changes only a counter, so every version is finite. On a
CPU the same state and the same rollouts give the same weights, bit for bit. Several learners that share an update make
the same gradient steps as one, on the same environments, up to rounding.
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
from configs.goal_schema import GoalsConfig
from configs.reward_schema import MAIN_TERM, RewardConfig, TermConfig
from configs.schema import ArchiveConfig, LearnerConfig, PolicyConfig
from learner.batch import Batch, BatchBuffers, draw_minibatches, keep_freed_memory
from learner.checkpoint_format import CheckpointError
from learner.data_parallel import Exchange, Part, Peers, Share, divide
from learner.episode_archive import EpisodeArchive
from learner.loss import action_log_probs, clamped_ratios, core_metrics, mean_kl, policy_loss, standardized
from learner.reward.mixer import NO_GOALS, RewardMixer
from learner.reward.paid import PaidRewards
from learner.step_metrics import GradientStep, state_information, update_metrics
from learner.vtrace import ReturnScale, VtraceTargets, vtrace_targets
from reward_models.networks.fitting import load_optimizer_state, optimizer_state
from reward_models.published import PublishedReward

LOG = logging.getLogger(__name__)
PROBE_INTERVAL, PROBE_COLUMNS = 8, 8
"""Every 8th update is compared with the policy before it, in the first 8 environments of the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The results of one update (learner -> metrics)."""

    metrics: dict[str, float]
    """Finite metrics by name; without those that this batch does not define (of a skipped update, for example)."""
    lags: list[int]  # policy lag of each rollout, in versions
    intrinsic: list[np.ndarray]  # each rollout's intrinsic rewards [T, B], the sum of all terms
    terms: dict[str, dict[str, float]]  # of each term of the intrinsic reward; see `MixedRewards.term_metrics`
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
        terms: Mapping[str, TermConfig] | None = None,
        goals: GoalsConfig = NO_GOALS,
        archive: ArchiveConfig | None = None,
    ) -> None:
        """`terms` are those of `configs.terms.resolved_terms`, None for the main one alone, as `reward` describes it.
        Without an `archive` that keeps episodes, none are kept.
        Raises ValueError for a network that cannot read the observations and for an unavailable device."""
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
        self._rewards, self._return_scale = (
            RewardMixer(reward, terms, goals, spec.features, spec.action_names),
            ReturnScale(),
        )
        self.archive: EpisodeArchive | None = None
        """A sample of the episodes that finished; None if none are kept."""
        if archive is not None and archive.keep:
            self.archive = EpisodeArchive(archive, spec.features, spec.action_names, seed)
        self._names: dict[str, list[str]] | None = None
        """Those that programs read and the archive holds; None where there is neither."""
        if self.archive is not None or any(term.program for term in (terms or {}).values()):
            self._names = {"features": [*spec.features], "actions": [*spec.action_names]}
        self._updates = self._gradient_steps = self._skipped = 0
        self._exchange: Exchange | None = None
        self._peers: Peers | None = None
        self._goal_vectors: np.ndarray | None = None
        self._handed_vectors: np.ndarray | None = None

    def load_goals(self, vectors: np.ndarray) -> None:
        """Read goals as these vectors [G, D], if the policy reads goals; ValueError for those of another width."""
        self._goal_vectors = vectors
        self.net.set_goal_vectors(vectors)

    def share_work(self, exchange: Exchange, peers: Peers | None = None) -> None:
        """From now on make each update together with the learners at `exchange`, whose states are equal to this one's.
        The first learner has `peers`, and is the only one whose `step` is called."""
        self._exchange, self._peers, self._handed_vectors = exchange, peers, None

    @property
    def policy_version(self) -> Version:
        """The version of the current weights."""
        return self.run_epoch, self._updates

    def step(self, rollouts: Sequence[Rollout], reward: PublishedReward, progress: float = 0.0) -> StepResult:
        """One update on the rollouts, all of whose steps but those of lost environments have equal weight. Rewards are
        computed here, with the tables of `reward`. `progress`, in [0, 1], is the fraction of the run's steps already
        consumed."""
        began = time.perf_counter()
        if reward.goals is not None and reward.goals.vectors is not self._goal_vectors:
            self.load_goals(reward.goals.vectors)
        intrinsic_scale, rewards = self._rewards.intrinsic_scale, self._rewards.mix(rollouts, reward)
        self._note_episodes(rollouts)
        kept = np.concatenate([rollout.kept for rollout in rollouts])
        total, intrinsic = rewards.total[:, kept], rewards.intrinsic[:, kept]
        trained = [rollout for rollout in rollouts if rollout.num_steps]
        parts = divide(trained, total, self._num_learners, self._new_vectors())
        mixed = time.perf_counter()
        if self._peers is not None:
            self._peers.hand_out(parts, progress)
        batch = self._join(parts[0])
        joined = time.perf_counter()
        updates, taken, skipped = self._updates, self._gradient_steps, self._skipped
        metrics = self._train(batch, parts[0], progress)
        if self._peers is not None:
            self._peers.finish()
        if self._updates > updates:
            self._rewards.note_paid(rewards, kept)
        metrics["intrinsic_reward_mean"] = float(intrinsic.mean())
        metrics["intrinsic_scale"] = intrinsic_scale
        metrics["intrinsic_unknown_fraction"] = rewards.unknown_fraction
        return StepResult(
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
            lags=[updates - rollout.policy_version[1] for rollout in rollouts],
            intrinsic=np.split(rewards.intrinsic, np.cumsum([len(rollout.kept) for rollout in rollouts])[:-1], axis=1),
            terms=rewards.term_metrics(kept),
            skipped_fraction=(self._skipped - skipped) / max(self._gradient_steps - taken + self._skipped - skipped, 1),
            timings={"relabel": mixed - began, "transfer": joined - mixed, "train": time.perf_counter() - joined},
        )

    def take_part(self, part: Part, progress: float) -> None:
        """The part of a learner that is not the first in an update; see `step`."""
        if part.goal_vectors is not None:
            self.load_goals(part.goal_vectors)
        self._train(self._join(part), part, progress)

    def pass_over(self, rollout: Rollout, reward: PublishedReward) -> None:
        """Update the state of the running episodes with a rollout that is dropped."""
        self._rewards.pass_over(rollout, reward)
        self._note_episodes([rollout])

    def metrics(self) -> dict[str, float]:
        """Counters over the whole run: `learner_updates`, `updates_skipped_nonfinite`."""
        return {"learner_updates": self._gradient_steps, "updates_skipped_nonfinite": self._skipped}

    @property
    def paid(self) -> PaidRewards:
        """The intrinsic reward that each caption earned from the main term in the whole run, by absolute value."""
        return self._rewards.paid[MAIN_TERM]

    @property
    def paid_by_term(self) -> dict[str, PaidRewards]:
        """The intrinsic reward that each item earned in the whole run, with its sign, by term without the main one."""
        return {name: paid for name, paid in self._rewards.paid.items() if name != MAIN_TERM}

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
            **({"archive": self.archive.state_dict()} if self.archive is not None else {}),
            **({"names": self._names} if self._names is not None else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from `state_dict`, in this learner's own epoch. Raises RuntimeError for the state of another
        network, and for that of this epoch or a later one, whose versions would recur; CheckpointError for one of other
        features or actions than those that programs read and the archive holds."""
        if state["run_epoch"] >= self.run_epoch:
            raise RuntimeError(
                f"the state is of run epoch {state['run_epoch']}, this learner of {self.run_epoch}:"
                " each start of a run needs an epoch of its own, higher than all before"
            )
        self._check_names(state.get("names"))
        if (before := state.get("precision", self._precision_name)) != self._precision_name:
            after = self._precision_name
            LOG.warning(
                "this run computed in %s so far and goes on in %s: its updates are rounded differently", before, after
            )
        self.continue_from(state)

    def continue_from(self, state: Mapping[str, Any]) -> None:
        """Continue from another learner's `state_dict`, at its version."""
        load_weights(self.net, state["weights"])
        load_optimizer_state(self.net, self._optimizer, state["adam"])
        self._rewards.load_state_dict(state["rewards"])
        if self.archive is not None:
            self.archive.load_state_dict(state["archive"])
        self._updates, self._skipped = state["updates"], state["skipped"]
        self._gradient_steps = state.get("gradient_steps", self._updates)
        self._return_scale.load_state_dict(state.get("return_scale"))

    def _check_names(self, saved: Mapping[str, Sequence[str]] | None) -> None:
        """A column or an action number of another name would be taken for what it was before. Older checkpoints have
        no names."""
        if self._names is None or saved is None:
            return
        for kind, source in (("features", "env.features gave"), ("actions", "the environment has the actions")):
            now, before = self._names[kind], [*saved[kind]]
            if now != before:
                got = f"{source} {', '.join(now) or 'none'}; the checkpoint has {', '.join(before) or 'none'}"
                raise CheckpointError(f"{got}: give the same ones in the same order, or take a new run_dir")

    def _note_episodes(self, rollouts: Sequence[Rollout]) -> None:
        if self.archive is not None:
            for rollout in rollouts:
                self.archive.observe(rollout)

    @property
    def _num_learners(self) -> int:
        return 1 if self._exchange is None else self._exchange.size

    def _new_vectors(self) -> np.ndarray | None:
        """The goal vectors, where the other learners do not have them yet."""
        if self._peers is None or self._goal_vectors is self._handed_vectors:
            return None
        self._handed_vectors = self._goal_vectors
        return self._goal_vectors

    def _join(self, part: Part) -> Batch:
        return self._buffers.join([rollout.without_lost() for rollout in part.rollouts])

    def _train(self, batch: Batch, own: Part, progress: float) -> dict[str, float]:
        """All gradient steps on the whole batch, of which this learner computes its `own` part, `batch`; one whose loss
        or gradient is not finite is not taken. The means of all steps' metrics, of which `grad_norm` is before
        clipping."""
        config, before, is_first = self.config, self._gradient_steps, own.share.first == 0
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - (1 - config.final_learning_rate_fraction) * progress)
        is_probed = self._updates % PROBE_INTERVAL == 0
        is_single = config.epochs * config.minibatches == 1
        with torch.set_grad_enabled(is_single):
            output = self._forward(batch)
        targets = self._targets(batch, output, torch.tensor(own.rewards, device=self.device))
        if self._exchange is not None:
            targets = VtraceTargets(*self._exchange.join(torch.stack(targets), own.share))
        logits_before = output.logits[:, :PROBE_COLUMNS].detach()
        steps: list[GradientStep] = []
        for epoch in range(config.epochs):
            seed = self._seed, self._updates, self._skipped, epoch
            for columns in draw_minibatches(own.share.total, config.minibatches, seed):
                known = output if is_single else None
                steps.append(self._gradient(batch, targets, columns, own.share, known))
                if steps[-1].is_finite:
                    self._optimizer.step()
                    self._gradient_steps += 1
                else:
                    self._skipped += 1
        if self._gradient_steps > before:
            self._updates += 1
            if config.normalize_returns:
                self._return_scale.observe(targets.vs)
                self.net.rescale_values(*self._return_scale.unit(self.device))
        means = update_metrics(steps, len(steps) // config.epochs, self._exchange)
        fraction = own.share.count / own.share.total
        means["policy_state_information"] = state_information(batch.behaviour_logits, fraction, self._exchange)
        if is_probed and is_first:
            means |= self._compare(batch, logits_before)
        return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))  # one wait for the device

    def _gradient(
        self, batch: Batch, targets: VtraceTargets, columns: Tensor | None, share: Share, output: PolicyOutput | None
    ) -> GradientStep:
        """The gradient of a step on the environments `columns` [N] i64 of the whole batch, or on all of them, of which
        this learner's `share` is `batch`; `output` is the network's for it, where that is known."""
        config, fraction = self.config, 1.0
        minibatch = targets if columns is None else targets.columns(columns.to(self.device))
        if config.normalize_advantages:
            minibatch = minibatch._replace(pg_advantages=standardized(minibatch.pg_advantages))
        target_variance = minibatch.vs.var(correction=0)
        if not share.is_whole:
            chosen = torch.arange(share.total) if columns is None else columns
            own = share.among(chosen)
            minibatch, fraction = minibatch.columns(own.to(self.device)), len(own) / len(chosen)
            columns = None if columns is None else chosen[own] - share.first
        self._optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        metrics: dict[str, Tensor] = {}
        if fraction:
            part = batch if columns is None else batch.columns(columns)
            output = output or self._forward(part)
            loss, metrics = policy_loss(
                logits=output.logits[:-1],
                ratios=self._ratios(part, output),
                values=output.values[:-1],
                behaviour_values=part.behaviour_values,
                targets=minibatch,
                config=config,
                value_scale=self.net.value_scale,
            )
            (loss if share.is_whole else loss * fraction).backward()
        if self._exchange is not None:
            loss = self._exchange.sum_gradients(self.net, loss * fraction)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.max_grad_norm)
        is_finite = bool(torch.isfinite(loss.detach() + grad_norm))
        is_clipped = (grad_norm > config.max_grad_norm).float()
        return GradientStep(metrics, fraction, target_variance, grad_norm, is_clipped, is_finite)

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
