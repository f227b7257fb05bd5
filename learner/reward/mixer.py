"""The reward that the learner trains on, extrinsic + intrinsic, computed when a rollout is consumed: the intrinsic
reward is the sum of its terms.

Invariant: step t is paid for the item that action t led to, an episode's last one included. The empty item is never
unknown; an item that is not in its term's table yet has reward 0 and is counted. With the main term alone and default
settings this is r = k_ext clip(s r_env, -c, c) + k_int R(caption) / count^beta (ONI section 2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.rollout import Rollout
from configs.goal_schema import GoalsConfig
from configs.reward_schema import MAIN_TERM, RewardConfig, TermConfig
from configs.schema import RunConfig
from configs.terms import resolved_terms
from learner.reward.episode_rewards import ShareCap
from learner.reward.paid import PaidRewards
from learner.reward.payments import PaidGoals, StepRewards, event_rewards
from learner.reward.terms import Term, Weights
from reward_models.published import PublishedReward
from reward_models.table import RewardTable


@dataclass(frozen=True, slots=True, kw_only=True)
class TermRewards:
    """What one term pays for T steps of B environments."""

    rewards: np.ndarray  # [T, B] f32: a summand of the intrinsic reward
    items: np.ndarray  # [T, B] u64: what each step is paid for
    unknown_fraction: float  # of steps
    weights: Weights  # that `rewards` contain
    version: int  # of its reward table
    goals: PaidGoals | None = None
    components: Mapping[str, np.ndarray] = field(default_factory=dict)  # [T, B] f32 by name: of a program's number


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedRewards:
    """Rewards of T steps of B environments."""

    total: np.ndarray  # [T, B] f32: the reward in V-trace
    extrinsic: np.ndarray  # [T, B] f32: the extrinsic part of `total`, k_ext included
    intrinsic: np.ndarray  # [T, B] f32: the intrinsic part of `total`, the sum of all terms, coefficients included
    unknown_fraction: float  # of steps whose caption is not in the main term's table
    terms: Mapping[str, TermRewards] = field(default_factory=dict)

    def term_metrics(self, kept: np.ndarray) -> dict[str, dict[str, float]]:
        """By term, over the environments `kept` [B] bool: the `mean` paid per step, its `share` of the sum of all
        terms' absolute values, the fraction `unknown`, the weights `trust` and `coefficient` (after annealing), the
        `version` of its table; and of a program by `component_NAME` the mean of each component."""
        columns = _columns(kept)
        rewards = {name: term.rewards[:, columns] for name, term in self.terms.items()}
        amounts = {name: float(np.abs(array).sum(dtype=np.float64)) for name, array in rewards.items()}
        total = sum(amounts.values())
        return {
            name: {
                "mean": float(rewards[name].mean()),
                "share": amounts[name] / total if total else 0.0,
                "unknown": term.unknown_fraction,
                "trust": term.weights.trust,
                "coefficient": term.weights.coefficient,
                "version": term.version,
                **{f"component_{key}": float(array[:, columns].mean()) for key, array in term.components.items()},
            }
            for name, term in self.terms.items()
        }


NO_GOALS = GoalsConfig()


class RewardMixer:
    """Mixes the rewards of rollouts, and keeps what later rewards depend on and what each item earned."""

    def __init__(
        self,
        config: RewardConfig,
        terms: Mapping[str, TermConfig] | None = None,
        goals: GoalsConfig = NO_GOALS,
        features: Sequence[str] = (),
        actions: Sequence[str] = (),
    ) -> None:
        """`terms` as `configs.terms.resolved_terms` returns them; None for the main one alone. `goals` says what the
        term that pays goals pays, and programs read `features` and `actions`. Raises ValueError for a program that does
        not fit these."""
        self._config = config
        terms = terms or resolved_terms(RunConfig(reward=config))
        self._terms = {name: Term(term, goals, features, actions) for name, term in terms.items()}
        self._cap = ShareCap(config.max_intrinsic_share)
        self._unknown = RewardTable.empty()  # of a term that has published none yet
        self.paid = {name: PaidRewards(with_sign=name != MAIN_TERM) for name in self._terms}
        """What each item earned in the whole run, by term; captions of the main term by absolute value."""
        self.paid_goals = PaidRewards(with_sign=True)
        """What each goal earned, by its index; `goals.TAKEN_BACK` is what was taken back."""

    def mix(self, rollouts: Sequence[Rollout], reward: PublishedReward) -> MixedRewards:
        """Rewards of `rollouts`, joined along the environment axis. Every rollout of a worker is given once, in order,
        to this method or to `pass_over`."""
        scale, weights = self._cap.scale, self._weights()
        mixed = [self._mix(rollout, reward, weights, scale) for rollout in rollouts]
        terms = {}
        for name, term in self._terms.items():
            term.anneal(sum(rollout.num_steps for rollout in rollouts))
            version = self._table(reward, name).reward_version[1]
            terms[name] = _joined([paid[name] for _, paid in mixed], weights[name], version, term.components)
        extrinsic = np.concatenate([of_rollout for of_rollout, _ in mixed], axis=1)
        intrinsic = _sum([term.rewards for term in terms.values()])
        return MixedRewards(
            total=extrinsic + intrinsic,
            extrinsic=extrinsic,
            intrinsic=intrinsic,
            unknown_fraction=terms[MAIN_TERM].unknown_fraction,
            terms=terms,
        )

    def note_paid(self, mixed: MixedRewards, kept: np.ndarray) -> None:
        """Count the rewards of the environments `kept` [B] bool as paid: the learner has trained on them."""
        columns = _columns(kept)
        for name, term in mixed.terms.items():
            if term.components:
                continue  # a program pays for no item
            self.paid[name].note(term.items[:, columns], term.rewards[:, columns])
            if term.goals is not None:
                steps, envs, goals, shares = (array[kept[term.goals.envs]] for array in term.goals)
                self.paid_goals.note(goals.astype(np.uint64), shares * term.rewards[steps, envs])

    def pass_over(self, rollout: Rollout, reward: PublishedReward) -> None:
        """Update the state of the running episodes with a rollout that is dropped."""
        self._mix(rollout, reward, self._weights(), 1.0)

    @property
    def intrinsic_scale(self) -> float:
        """The factor of `reward.max_intrinsic_share` on intrinsic reward, in [0, 1]."""
        return self._cap.scale

    def _weights(self) -> dict[str, Weights]:
        return {name: term.weights for name, term in self._terms.items()}

    def _table(self, reward: PublishedReward, name: str) -> RewardTable:
        return reward.tables.get(name, self._unknown)

    def _mix(
        self, rollout: Rollout, reward: PublishedReward, weights: Mapping[str, Weights], scale: float
    ) -> tuple[np.ndarray, dict[str, StepRewards]]:
        """The extrinsic part [T, B] f32, and what each term pays."""
        extrinsic = _extrinsic(rollout.extrinsic_rewards, self._config)
        paid = {
            name: term.pay(rollout, self._table(reward, name), reward.goals, weights[name].factor)
            for name, term in self._terms.items()
        }
        if self._config.max_intrinsic_share < 1.0:
            self._cap.observe(rollout, _sum([one.rewards for one in paid.values()]), extrinsic)
            paid = {name: one._replace(rewards=one.rewards * np.float32(scale)) for name, one in paid.items()}
        return extrinsic, paid

    def state_dict(self) -> dict[str, Any]:
        """Goals paid by the main term, cap, rewards paid per caption, and what else there is, by term and by goal."""
        terms = {name: term.state_dict() for name, term in self._terms.items()}
        paid = {name: paid.state_dict() for name, paid in self.paid.items()}
        return {
            "ledger": terms[MAIN_TERM].pop("payment"),
            "cap": self._cap.state_dict(),
            "paid": paid.pop(MAIN_TERM),
            "terms": terms,
            "paid_by_term": paid,
            "paid_goals": self.paid_goals.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, or from that of a version that had the main term alone."""
        terms, paid = state.get("terms", {}), state.get("paid_by_term", {})
        terms = {**terms, MAIN_TERM: {**terms.get(MAIN_TERM, {}), "payment": state["ledger"]}}
        paid = {**paid, MAIN_TERM: state["paid"]}
        self._cap.load_state_dict(state["cap"])
        for name in self._terms.keys() & terms.keys():
            self._terms[name].load_state_dict(terms[name])
        for name in self.paid.keys() & paid.keys():
            self.paid[name].load_state_dict(paid[name])
        if "paid_goals" in state:
            self.paid_goals.load_state_dict(state["paid_goals"])


def mix_rewards(
    *,
    extrinsic_rewards: np.ndarray,
    caption_ids: np.ndarray,
    caption_counts: np.ndarray,
    table: RewardTable,
    config: RewardConfig,
    is_due: np.ndarray | None = None,
) -> MixedRewards:
    """r = k_ext clip(s r_env, -c, c) + k_int R(caption) / count^beta (ONI section 2), from a rollout's arrays [T, B].
    `is_due` [T, B] bool is False where R is withheld because the caption's goal was already paid."""
    extrinsic = _extrinsic(extrinsic_rewards, config)
    values, known = table.look_up(caption_ids)
    if is_due is not None:
        values = np.where(is_due, values, np.float32(0))
    intrinsic = event_rewards(values, caption_counts, config.intrinsic_coefficient, config.count_exponent)
    return MixedRewards(
        total=extrinsic + intrinsic,
        extrinsic=extrinsic,
        intrinsic=intrinsic,
        unknown_fraction=float(1 - known.mean()),
    )


def _extrinsic(rewards: np.ndarray, config: RewardConfig) -> np.ndarray:
    clipped = np.clip(config.extrinsic_scale * rewards, -config.extrinsic_clip, config.extrinsic_clip)
    extrinsic: np.ndarray = config.extrinsic_coefficient * clipped
    return extrinsic.astype(np.float32, copy=False)


def _joined(steps: Sequence[StepRewards], weights: Weights, version: int, names: Sequence[str]) -> TermRewards:
    """What a term pays for the steps of several rollouts; `names` are those of its components."""
    sizes = [one.known.size for one in steps]
    return TermRewards(
        rewards=np.concatenate([one.rewards for one in steps], axis=1),
        items=np.concatenate([one.items for one in steps], axis=1),
        unknown_fraction=float(np.average([1 - one.known.mean() for one in steps], weights=sizes)),
        weights=weights,
        version=version,
        goals=PaidGoals.joined([one.goals for one in steps], [one.known.shape[1] for one in steps]),
        components={
            name: np.concatenate([one.components[..., c] for one in steps if one.components is not None], axis=1)
            for c, name in enumerate(names)
        },
    )


def _columns(kept: np.ndarray) -> Any:
    """Index of the environments `kept`, which copies nothing where all are."""
    return slice(None) if kept.all() else kept


def _sum(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Their sum in the order given; an only one itself."""
    total, *others = arrays
    for array in others:
        total = total + array
    return total
