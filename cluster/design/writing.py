"""`WritingRoom`: asks the author for programs, and for words about them.

Invariant: a text becomes a candidate only as a program of the wanted form that was not there before; what was wrong
with it is what the author is told in the next attempt. Every answer is a step of the journal, and is counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from xxhash import xxh3_64_intdigest

from cluster.design.authors import Author, Fields
from cluster.design.candidates import Candidate, compiled
from cluster.design.gating import Gatekeeper
from cluster.design.journal import Journal, Record
from cluster.design.material import (
    episodes_text,
    features_of,
    features_text,
    figures_text,
    language_text,
    look,
    measured,
    reflection_text,
)
from cluster.design.plan import BudgetSpent, Plan, Stopped
from llm_server.annotation import Status
from reward_models.programs.program import Program

STEPS = ("write", "criticise", "analyse", "prefer")
"""Steps of the journal that cost a writing."""
Archive: TypeAlias = Callable[[], Path | None]
"""Gives the run whose episodes are read, if any; asked only where something new is written or gated."""
NOTHING = "nothing usable came, wanted one block of code with one function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What an author is shown of the rounds before (campaign -> writing room)."""

    best: Candidate | None = None
    worst: Candidate | None = None
    notes: tuple[str, ...] = ()
    """Of other programs of the last round, in one line each."""
    analysis: str = ""
    remarks: tuple[str, ...] = ()
    """Of a person."""


class WritingRoom:
    """Used by one thread; `is_stopped` is asked before each step."""

    def __init__(
        self, plan: Plan, journal: Journal, author: Author, gates: Gatekeeper, is_stopped: Callable[[], bool]
    ) -> None:
        self._plan, self._journal, self._author, self._gates = plan, journal, author, gates
        self._is_stopped = is_stopped
        self._measured_in: Path | None = None
        self._ranges: Mapping[str, list[float]] | None = None

    @property
    def num_writings(self) -> int:
        """Answers of the author so far."""
        return sum(len(self._journal.all(step)) for step in STEPS)

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(record["tokens"] for step in STEPS for record in self._journal.all(step))

    def ask(self, step: str, brief: str, fields: Fields, **of: Any) -> Record:
        """The recorded answer to one question: `text`, empty where nothing usable came, and `tokens`. Raises
        BudgetSpent, also where the author has nothing more, Stopped, and what the author raises."""

        def write() -> Mapping[str, Any]:
            self._check()
            seed = xxh3_64_intdigest(f"{self._plan.base.seed}/{step}/{sorted(of.items())}".encode())
            number = len(self._journal.all("write"))
            writing = self._author.write(brief, fields, seed, number)
            if writing is None:
                raise BudgetSpent(f"the file of programs has no more than {number}")
            return {"text": writing.text if writing.status is Status.OK else "", "tokens": writing.tokens}

        return self._journal.once(step, write, **of)

    def write(
        self, number: int, sample: int, shown: Shown, known: Mapping[str, str], archive: Archive
    ) -> Candidate | None:
        """The program of one sample of a round, None where no attempt gave one; `known`: the names of the programs that
        there are, by their ids. Raises as `ask`."""
        place = {"round": number, "sample": sample}
        refused = refusal = ""
        found: Program | None = None
        for attempt in range(self._plan.kind.attempts):
            asked = partial(self._fields, shown, refused, refusal, archive)
            text = self.ask("write", f"write_{self._plan.kind.form}", asked, **place, attempt=attempt)["text"]
            try:
                program = self._program(text, known)
            except ValueError as error:
                refused, refusal = text, str(error)
                continue
            found = program
            refused, refusal = text, self._criticism(place, attempt, program)
            if not refusal:
                break
        return Candidate(name=f"{number + 1}.{sample + 1}", program=found) if found else None

    def problems(self) -> list[str]:
        """Why texts were refused, in the order of writing, by the compiler or as repetitions."""
        found, known = list[str](), dict[str, str]()
        for record in self._journal.all("write"):
            try:
                known[self._program(record["text"], known).program_id] = "of before"
            except ValueError as error:
                found.append(str(error))
        return found

    def analyse(self, number: int, best: Candidate) -> str:
        """In one sentence, what the agent of a round's best program fails at. Raises as `ask`."""
        run = best.outcomes[0]
        played = episodes_text(self._gates.episodes(Path(run.run)))
        course = reflection_text(run, best.verdicts, [played] if played else [])
        fields = {"task": self._plan.task, "program": best.program.text, "course": course}
        return self.ask("analyse", "analyse_failures", lambda: fields, round=number, program=best.name)["text"]

    def is_first_better(self, number: int, first: Candidate, second: Candidate) -> bool | None:
        """Which of two agents does the task better, by a language model; None where it does not say. Raises as
        `ask`."""
        told = {"first": figures_text(first.outcomes[0]), "second": figures_text(second.outcomes[0])}
        of = {"round": number, "first": first.name, "second": second.name}
        said = self.ask("prefer", "prefer_run", lambda: {"task": self._plan.task, **told}, **of)["text"].casefold()
        return None if ("first" in said) == ("second" in said) else "first" in said

    def ranges(self, archive: Path | None) -> Mapping[str, list[float]]:
        """The measured minimum, quartiles and maximum of each feature: in the archive, else in random play."""
        if self._ranges is None or archive != self._measured_in:
            features = features_of(self._gates.episodes(archive)) if archive else None
            if features is not None:
                self._ranges = measured(self._plan.features, features)
            else:
                self._ranges = self._ranges or measured(self._plan.features, look(self._plan.base))
            self._measured_in = archive
        return self._ranges

    def steady_features(self) -> list[str]:
        """The features that were measured and had one value."""
        return [name for name, (low, *_, high) in (self._ranges or {}).items() if low == high]

    def _check(self) -> None:
        if self._is_stopped():
            raise Stopped
        if (most := self._plan.max_writings) and self.num_writings >= most:
            raise BudgetSpent(f"--max-writings {most} are used up")

    def _program(self, text: str, known: Mapping[str, str]) -> Program:
        if not text:
            raise ValueError(NOTHING)
        program = compiled(text, self._plan.kind, self._plan.features, self._plan.actions)
        if program.program_id in known:
            raise ValueError(f"this is program {known[program.program_id]} again, wanted another one")
        return program

    def _criticism(self, place: Mapping[str, int], attempt: int, program: Program) -> str:
        """What the critic finds wrong; empty for nothing, and where there is no critic or no further attempt."""
        if not self._plan.kind.critic or attempt + 1 == self._plan.kind.attempts:
            return ""
        features = features_text(self._plan.features, {})
        fields = {"task": self._plan.task, "features": features, "program": program.text}
        said = self.ask("criticise", "criticise_program", lambda: fields, **place, attempt=attempt)["text"]
        return said if said.casefold().startswith("wrong") else ""

    def _fields(self, shown: Shown, refused: str, refusal: str, archive: Archive) -> dict[str, str]:
        kind, best, worst = self._plan.kind, shown.best, shown.worst
        notes = [*shown.notes, *([shown.analysis] if shown.analysis else [])]
        outcome = best.outcomes[0] if best and best.outcomes else None
        fields = {
            "task": self._plan.task,
            "features": features_text(self._plan.features, self.ranges(archive())),
            "language": language_text(kind.form),
            "advice": kind.advice,
            "best": best.program.text if best else "",
            "reflection": reflection_text(outcome, best.verdicts if best else (), notes),
            "worst": worst.program.text if worst else "",
            "remarks": "\n".join(shown.remarks),
            "refused": refused,
            "refusal": refusal,
        }
        return fields | ({"actions": ", ".join(self._plan.actions)} if kind.form == "reward" else {})
