"""The programs of a campaign: what becomes of a text that an author wrote, and what is known of each.

Invariant: a program is known by its canonical text, so one that comes again is not trained again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.design.kind import DesignKind
from cluster.design.runs import Outcome
from configs.reward_schema import TermConfig
from learner.reward.programs import term_program
from reward_models.gates import Verdict
from reward_models.programs.program import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A program with what came of it."""

    name: str
    """Round and sample, from 1: `2.5`."""
    program: Program
    verdicts: tuple[Verdict, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    """One per seed."""

    @property
    def is_refused(self) -> bool:
        """Whether a gate refuses it."""
        return any(verdict.passed is False for verdict in self.verdicts)

    @property
    def problem(self) -> str:
        """Why one of its runs died; empty where none did."""
        return next((outcome.problem for outcome in self.outcomes if outcome.problem), "")

    @property
    def score(self) -> tuple[float, float]:
        """The mean over seeds of the measure, then of the return, by which equal ones are told apart; below any number
        where a run died, or none was trained."""
        if not self.outcomes or self.problem:
            return (-np.inf, -np.inf)
        means = [np.mean([run.figures[run.measure] for run in self.outcomes if run.measure] or [-np.inf])]
        means.append(np.mean([run.figures.get("return", 0.0) for run in self.outcomes]))
        return float(means[0]), float(means[1])


def compiled(text: str, kind: DesignKind, features: Sequence[str], actions: Sequence[str]) -> Program:
    """The program in `text`, of the form that the kind wants. Raises ValueError, in one line for its writer."""
    program = term_program(TermConfig(reads="features", program=text, pays=kind.pays), features, actions)
    if program.form != kind.form:
        wanted = {"reward": "def reward(before, after, start, action):", "progress": "def progress(state):"}[kind.form]
        raise ValueError(f"line 1, column 1: got a function `{program.form}`; wanted `{wanted}`")
    return program


def recorded(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Verdicts as JSON values."""
    return [
        {
            "gate": each.gate,
            "passed": None if each.passed is None else bool(each.passed),
            "figure": None if each.figure is None else float(each.figure),
            "message": each.message,
        }
        for each in verdicts
    ]


def verdicts_of(record: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """The verdicts in a record of the journal."""
    return tuple(Verdict(**values) for values in record["verdicts"])


def with_outcomes(candidate: Candidate, records: Sequence[Mapping[str, Any]]) -> Candidate:
    """The candidate with the outcomes of its runs."""
    return replace(candidate, outcomes=tuple(Outcome(**record["outcome"]) for record in records))
