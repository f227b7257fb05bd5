"""`Term`: one summand of the intrinsic reward, from what a rollout shows to what is paid for it.

    items -> values (table) -> payment x coefficient -> x trust x annealing -> cap of the episode's sum

Invariant: with default settings the weights are 1 and nothing is cut, so a term pays what its payment says, bit for
bit.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from actors.rollout import Rollout
from configs.goal_schema import GOAL_TERM, GoalsConfig
from configs.reward_schema import TermConfig
from learner.reward.episode_rewards import TRUSTS, EpisodeCap
from learner.reward.goals import Goals
from learner.reward.payments import PAYMENTS, Payment, StepRewards
from learner.reward.programs import ProgramPayment
from reward_models.goals.published import PublishedGoals
from reward_models.table import RewardTable


class Weights(NamedTuple):
    """What a term's payments are multiplied by."""

    trust: float  # by outcomes, in [0, 1]
    coefficient: float  # after annealing
    factor: float  # trust x annealing, because payments contain the coefficient


class Term:
    """A term's payment, weights and cap; every rollout of a worker is given once, in order."""

    def __init__(self, config: TermConfig, goals: GoalsConfig, features: Sequence[str], actions: Sequence[str]) -> None:
        """`config` as `configs.terms.resolved_terms` returns it; `features` and `actions` are the names that a program
        may read. Raises ValueError for a program that does not fit them."""
        self._config = config
        self._payment: Payment
        self.components: tuple[str, ...] = ()
        """The names of what a program's number is the sum of; none for a judged term."""
        if config.program:
            self._payment = program = ProgramPayment(config, features, actions)
            self.components = program.components
        else:
            self._payment = Goals(config, goals) if config.pays == GOAL_TERM else PAYMENTS[config.pays](config)
        self._trust = TRUSTS[config.trust]() if config.trust != "none" else None
        self._cap = EpisodeCap(config.episode_cap) if config.episode_cap else None
        self._env_steps = 0

    @property
    def weights(self) -> Weights:
        """Those of the next batch."""
        trust, period = 1.0 if self._trust is None else self._trust.weight, self._config.anneal_env_steps
        annealing = math.exp(-self._env_steps / period) if period else 1.0
        return Weights(trust, self._config.coefficient * annealing, trust * annealing)

    def anneal(self, env_steps: int) -> None:
        """Count environment steps that the learner consumed."""
        if self._config.anneal_env_steps:
            self._env_steps += env_steps

    def pay(self, rollout: Rollout, table: RewardTable, goals: PublishedGoals | None, factor: float) -> StepRewards:
        """What the term pays for a rollout; `factor` is that of its `weights`, the same for a whole batch."""
        paid = self._payment.pay(rollout, table, goals)
        if self._trust is not None:
            self._trust.observe(rollout, paid.rewards)
        if factor != 1.0:
            paid = paid._replace(rewards=paid.rewards * np.float32(factor))
        return paid if self._cap is None else paid._replace(rewards=self._cap.cut(rollout, paid.rewards))

    def state_dict(self) -> dict[str, Any]:
        """Everything that later rewards depend on."""
        return {
            "payment": self._payment.state_dict(),
            "trust": {} if self._trust is None else self._trust.state_dict(),
            "cap": {} if self._cap is None else self._cap.state_dict(),
            "env_steps": self._env_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; what is not in it begins anew."""
        if "payment" in state:
            self._payment.load_state_dict(state["payment"])
        if self._trust is not None and state.get("trust"):
            self._trust.load_state_dict(state["trust"])
        if self._cap is not None:
            self._cap.load_state_dict(state.get("cap", {}))
        self._env_steps = state.get("env_steps", 0)
