"""`Campaign`: writes programs, gates them, trains agents by them, and shows the author what came of it.

    for each round, for each sample:  write ──▶ compile ──▶ [critic] ──▶ gates     (again, with what was wrong)
    for each round:                   train and measure ──▶ select ──▶ [analyse] ──▶ the next round

Invariant: every step is in the journal before the next one begins, and what is done next follows from the journal
alone, so a campaign that was ended anywhere goes on to the same winner. A budget is checked before a step begins.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cluster.design.authors import Author
from cluster.design.candidates import Candidate, recorded, verdicts_of, with_outcomes
from cluster.design.gating import Gatekeeper
from cluster.design.journal import Journal
from cluster.design.plan import BudgetSpent, Plan, Stopped
from cluster.design.runs import Outcome, Trainer, run_of
from cluster.design.selection import ordered
from cluster.design.writing import Archive, Shown, WritingRoom
from configs.schema import RunConfig
from llm_server.progress import progress, say_on_stderr

POLL_S = 1.0
MAX_IN_VAIN = 24
"""Writings after which a campaign without any program is given up, at the end of a round."""
MAX_NOTES = 4
"""Of other programs of the last round, shown to the author."""


class Campaign:
    """Used by one thread."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        author: Author,
        gates: Gatekeeper,
        trainer: Trainer,
        *,
        say: Callable[[str], None] = say_on_stderr,
        is_stopped: Callable[[], bool] = bool,
        on_round: Callable[["Campaign"], None] = lambda _: None,
    ) -> None:
        """`on_round` is called after each round, and where the campaign ends within one."""
        self.plan, self.journal = plan, journal
        self.room = WritingRoom(plan, journal, author, gates, is_stopped)
        self.candidates: dict[str, Candidate] = {}
        """Every program by name, in the order of writing."""
        self.best: Candidate | None = None
        """By the last selection; its runs may have died where all did."""
        self.ended = ""
        """Why it ended before its last round; empty where it did not."""
        self._worst: Candidate | None = None
        self._evidence: dict[Path, int] = {}  # of each run that has ended; see `_archive`
        self._gates, self._trainer = gates, trainer
        self._say, self._is_stopped, self._on_round = say, is_stopped, on_round

    @property
    def winner(self) -> Candidate | None:
        """The best program that was trained to its end."""
        return self.best if self.best and not self.best.problem else None

    @property
    def spent_steps(self) -> int:
        """Environment steps of all runs that have ended."""
        return self._spent_before(self.plan.num_rounds)

    @property
    def saved_steps(self) -> int:
        """Environment steps of the runs that gates prevented."""
        return sum(each.is_refused for each in self.candidates.values()) * self.plan.cost

    def run(self) -> Candidate | None:
        """All rounds, or as many as the budgets allow; the winner. Raises Stopped, ConfigError, EOFError, and
        RuntimeError where the author does not answer."""
        try:
            for number in range(self.plan.num_rounds):
                self._say(f"round {number + 1} of {self.plan.num_rounds}")
                self._round(number)
                if not self.candidates and self.room.num_writings >= MAX_IN_VAIN and not self.ended:
                    self.ended = f"none of {self.room.num_writings} writings is a program"
                if self.ended:
                    break
                self._on_round(self)
        finally:
            self._on_round(self)
        return self.winner

    def _round(self, number: int) -> None:
        accepted = self._write(number)
        trained = self._train(number, accepted)
        if not trained:
            return
        contestants = [*([self.best] if self.best else []), *trained]
        order = self._order(number, contestants)
        self.best = self.candidates[order[0]]
        self._worst = self.candidates[order[-1]] if len(order) > 1 else None
        if self.plan.kind.analyse and number + 1 < self.plan.num_rounds and self.winner and not self.ended:
            try:
                self.room.analyse(number, self.winner)
            except BudgetSpent as reason:
                self.ended = str(reason)

    def _write(self, number: int) -> list[Candidate]:
        """The round's programs that no gate refuses."""
        accepted: list[Candidate] = []
        archive, shown, samples = cache(self._archive), self._shown(number), self.plan.kind.samples
        with progress(f"round {number + 1}: writing", samples, self._say) as advance:
            for sample in range(samples):
                known = {each.program.program_id: name for name, each in self.candidates.items()}
                try:
                    candidate = self.room.write(number, sample, shown, known, archive)
                except BudgetSpent as reason:
                    self.ended = str(reason)
                    break
                if candidate is not None:
                    candidate = self._gated(number, sample, candidate, archive)
                    self.candidates[candidate.name] = candidate
                    accepted += [] if candidate.is_refused else [candidate]
                advance(1)
        return accepted

    def _archive(self) -> Path | None:
        """The run whose episodes gates read: the one that was given, else of those that have ended the one with the
        most successes or failures, whichever it has fewer of; of equal ones the first."""
        if self.plan.archive:
            return self.plan.archive
        runs = [Path(run.run) for each in self.candidates.values() for run in each.outcomes if not run.problem]
        for run in runs:
            if run not in self._evidence:
                episodes = self._gates.episodes(run)
                success = episodes.outcomes("success") if episodes else np.zeros(0, bool)
                self._evidence[run] = min(int(success.sum()), int((~success).sum())) if len(success) else -1
        return max(runs, key=self._evidence.__getitem__, default=None)

    def _shown(self, number: int) -> Shown:
        last = [each for name, each in self.candidates.items() if name.startswith(f"{number}.")]  # names count from 1
        notes = [
            f"another program was refused by the gate {verdict.gate}: {verdict.message}"
            for each in last
            for verdict in each.verdicts
            if verdict.passed is False
        ]
        notes += [f"the run of another program died: {each.problem}" for each in last if each.problem]
        best = self.best.name if self.best else ""
        analysis = self.journal.find("analyse", round=number - 1, program=best)
        return Shown(
            best=self.best,
            worst=self._worst if self.plan.kind.shows_worst else None,
            notes=tuple(notes[:MAX_NOTES]),
            analysis=analysis["text"] if analysis else "",
            remarks=self.plan.remarks[: max(0, number - self.plan.kind.rounds + 1)],
        )

    def _gated(self, number: int, sample: int, candidate: Candidate, archive: Archive) -> Candidate:
        before = {name: each.program for name, each in self.candidates.items() if not each.is_refused}

        def ask() -> dict[str, Any]:
            verdicts = self._gates.verdicts(candidate.program, before, archive())
            return {"verdicts": recorded([each for each in verdicts if each.gate in self.plan.kind.gates])}

        gated = replace(candidate, verdicts=verdicts_of(self.journal.once("gate", ask, round=number, sample=sample)))
        for verdict in gated.verdicts:
            if verdict.passed is False:
                self._say(f"program {candidate.name} is not trained, by the gate {verdict.gate}: {verdict.message}")
        return gated

    def _spent_before(self, number: int) -> int:
        """Environment steps of the runs of earlier rounds."""
        records = self.journal.all("train")
        return sum(record["outcome"]["env_steps"] for record in records if record["of"]["round"] < number)

    def _train(self, number: int, accepted: Sequence[Candidate]) -> list[Candidate]:
        """Those that there are steps for, with what came of them."""
        seeds = range(self.plan.kind.seeds)
        spent, most = self._spent_before(number), self.plan.max_env_steps
        chosen: list[Candidate] = []
        for each in accepted:
            is_done = all(self._outcome(number, each.name, seed) for seed in seeds)
            if most and not is_done and spent + (len(chosen) + 1) * self.plan.cost > most:
                self.ended = f"the next program would exceed --max-env-steps {most}"
                break
            chosen.append(each)
        missing = {
            (each.name, seed): self._config(each, seed)
            for each in chosen
            for seed in seeds
            if self._outcome(number, each.name, seed) is None
        }
        if missing:
            self._run_all(number, missing)
        trained = []
        for each in chosen:
            records = [self._outcome(number, each.name, seed) for seed in seeds]
            trained.append(with_outcomes(each, [record for record in records if record is not None]))
            self.candidates[each.name] = trained[-1]
        return trained

    def _outcome(self, number: int, name: str, seed: int) -> Any:
        return self.journal.find("train", round=number, program=name, seed=seed)

    def _config(self, candidate: Candidate, seed: int) -> RunConfig:
        place = self.plan.out / "runs" / candidate.name / str(seed)
        base, text = self.plan.base, candidate.program.text
        return run_of(base, self.plan.kind, text, steps=self.plan.steps, seed=base.seed + seed, run_dir=place)

    def _run_all(self, number: int, runs: dict[tuple[str, int], RunConfig]) -> None:
        """Train them, `jobs` at a time, and record what came of each."""
        if self._is_stopped():
            raise Stopped
        what, total = f"round {number + 1}: training, environment steps", len(runs) * self.plan.steps
        shown, was_stopped = 0, False
        with progress(what, total, self._say) as advance, ThreadPoolExecutor(self.plan.jobs) as pool:
            running: dict[Future[Outcome | None], tuple[str, int]] = {
                pool.submit(self._begin, config): key for key, config in runs.items()
            }
            try:
                while running:
                    ended, _ = wait(running, POLL_S, FIRST_COMPLETED)
                    for future in ended:
                        (name, seed), outcome = running.pop(future), future.result()
                        was_stopped |= outcome is None
                        if outcome is not None:
                            result = {"outcome": outcome.as_json()}
                            self.journal.add("train", result, round=number, program=name, seed=seed)
                            self._say(f"program {name}: {outcome.problem or outcome.told}")
                    steps = sum(min(self._trainer.env_steps(config), self.plan.steps) for config in runs.values())
                    if steps > shown:
                        advance(steps - shown)
                        shown = steps
            finally:
                for future in running:
                    future.cancel()
        if was_stopped:
            raise Stopped

    def _begin(self, config: RunConfig) -> Outcome | None:
        return None if self._is_stopped() else self._trainer.train(config, self._is_stopped)

    def _order(self, number: int, contestants: Sequence[Candidate]) -> list[str]:
        """The names of the contestants, the best first."""

        def select() -> dict[str, Any]:
            try:
                found = ordered(self.plan.kind.select, number, contestants, self.room)
            except BudgetSpent as reason:
                self.ended = f"{reason}; the last round is ordered by score"
                found = ordered("score", number, contestants, self.room)
            return {"order": [each.name for each in found]}

        among = [each.name for each in contestants]  # more of them where a budget was raised
        return list(self.journal.once("select", select, round=number, among=among)["order"])
