"""A term whose number is computed by a reward program over features (`terms.NAME.program`), with the payments of
judged terms.

    reward(before, after, start, action)      event: k v
    progress(state)                           event: k v(after); potential, improvement, visits: see `payments.py`

with k the term's coefficient and v the sum of the program's components, clipped to +-`program_clip`.

Invariant: a step is paid by the features of its own transition, an episode's last one included. Where a component is
not a finite number, the step earns nothing, moves no maximum, is no visit, and counts as unknown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.features.signals import FEATURES
from actors.rollout import Rollout
from configs.reward_schema import TermConfig
from learner.reward.payments import EMPTY, OF_VALUES, StepRewards, Valued, signal
from reward_models.goals.published import PublishedGoals
from reward_models.programs.compiling import compile_program
from reward_models.programs.evaluation import evaluate_progress, evaluate_reward
from reward_models.programs.program import Program
from reward_models.table import RewardTable

EVENT = "event"


def term_program(term: TermConfig, features: Sequence[str], actions: Sequence[str]) -> Program:
    """The program of a term, for an environment with these names of features and actions. Raises ValueError, in one
    line, for a text that is no program, and for one that cannot be paid as the term wants."""
    program = compile_program(term.program, features, actions)
    if program.form == "reward" and term.pays != EVENT:
        wanted = "wanted pays=event, or a program progress(state)"
        raise ValueError(f"got a reward for what happened with pays={term.pays}, {wanted}")
    return program


class ProgramPayment:
    """The `Payment` of a program."""

    def __init__(self, term: TermConfig, features: Sequence[str], actions: Sequence[str]) -> None:
        """For environments with these names of features and actions; see `term_program`."""
        self._term, self._names = term, tuple(features)
        self._program = term_program(term, features, actions)
        self._payment = None if term.pays == EVENT else OF_VALUES[term.pays](term)

    @property
    def components(self) -> tuple[str, ...]:
        """The names of what the program's number is the sum of."""
        return self._program.components

    def pay(self, rollout: Rollout, table: RewardTable, goals: PublishedGoals | None = None) -> StepRewards:
        """See `Payment`; there is nothing to look up."""
        components = self._components(rollout)
        after = self._valued(components)
        if self._payment is None:
            paid = StepRewards(self._term.coefficient * after.values, after.items, after.known)
        else:
            paid = self._payment.pay_values(rollout, self._at_end(rollout, after), self._before(rollout))
        return paid._replace(components=np.nan_to_num(components, copy=False))

    def state_dict(self) -> dict[str, Any]:
        """That of the payment, and the program that it belongs to."""
        return {
            "program_id": self._program.program_id,
            "payment": {} if self._payment is None else self._payment.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; maxima and visits of another program are forgotten."""
        if self._payment is not None and state.get("program_id") == self._program.program_id:
            self._payment.load_state_dict(state["payment"])

    def _components(self, rollout: Rollout) -> np.ndarray:
        """[T, B, C]: of the transitions, or of the states that they led to."""
        after = signal(rollout, FEATURES)
        if self._program.form == "progress":
            return evaluate_progress(self._program, after, self._names)
        before, start = (signal(rollout, f"{FEATURES}_{moment}") for moment in ("before", "start"))
        return evaluate_reward(self._program, before, after, start, rollout.actions, self._names)

    def _before(self, rollout: Rollout) -> Valued:
        return self._valued(evaluate_progress(self._program, signal(rollout, f"{FEATURES}_before"), self._names))

    def _at_end(self, rollout: Rollout, after: Valued) -> Valued:
        """As `potential` wants it: after the end of an episode that terminated, 0."""
        if self._term.pays != "potential":
            return after
        values = np.where(rollout.terminated, np.float32(0), after.values)
        return after._replace(values=values, known=after.known | rollout.terminated)

    def _valued(self, components: np.ndarray) -> Valued:
        total, clip = components.sum(-1), np.float32(self._term.program_clip)
        known = ~np.isnan(total)
        values = np.where(known, np.clip(total, -clip, clip), np.float32(0))
        return Valued(values, known, np.full(known.shape, EMPTY), known)
