"""`WrittenGoals`: what a language model is asked to write so that the run gets goals, source by source.

    suggest     for each described state, most frequent first: what could be done in it (ELLM, Du et al. 2023)
    decompose   once: the steps of the task, a plan if `goals.ordered` (Words as Beacons, Ruiz-Gonzalez et al. 2024)
    relabel     of the newest accomplishments, each shown once: what was achieved (LMA3, Colas et al. 2023); by
                similarity alone, of all new items
    compose     when another goal is mastered: a chain of mastered goals as one (LMA3)
    vary        for each goal that keeps failing: an easier one like it (WebRL, Qi et al. 2024)

Invariant: what to ask is a function of the book, its statistics and what was asked before; nothing is asked twice, and
a question that fails for the service's sake is asked again.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from configs.goal_schema import WRITTEN, GoalsConfig
from reward_models.goals.book import MAX_CHARS, NONE, GoalBook
from reward_models.goals.statistics import GoalStatistics
from reward_models.goals.suggestions import Suggestions

NO_STATE = 0
"""Id of the empty state."""
MAX_EVENTS = 8
"""Accomplishments shown in one question of `relabel`."""
MAX_WAITING = 64
"""Accomplishments that wait to be shown; the newest are kept."""
MASTERED, MIN_MASTERED, MAX_SHOWN = 0.5, 2, 8
"""Of `compose`: the success rate of a mastered goal, how many there must be, and how many are shown."""
FAILED, MIN_TRIES = 0.05, 20
"""Of `vary`: the success rate below which a goal fails, once it was tried so often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question to a writer."""

    source: str
    brief: str
    fields: Mapping[str, bytes]
    key: int = 0
    """What it is about, for its source: the state or the goal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Texts that may become goals (sources -> goal book)."""

    texts: tuple[str, ...]
    source: str
    parent: int = NONE
    state: int = NO_STATE
    """The state in which they are suggested."""
    is_plan: bool = False
    """Each is to be achieved after the one before it."""


Next: TypeAlias = Callable[[], Question | None]


class WrittenGoals:
    """Not thread-safe."""

    def __init__(
        self, config: GoalsConfig, book: GoalBook, statistics: GoalStatistics, suggestions: Suggestions
    ) -> None:
        self._config, self._book, self._statistics, self._suggestions = config, book, statistics, suggestions
        self._events: deque[str] = deque(maxlen=MAX_WAITING)
        self._is_decomposed = False
        self._composed: set[int] = set()  # goals that were mastered at the last question of `compose`
        self._varied: set[int] = set()
        self._turn = 0  # of the sources, in the order of the configuration
        nexts: dict[str, Next] = {
            "suggest": self._suggest,
            "decompose": self._decompose,
            "relabel": self._relabel,
            "compose": self._compose,
            "vary": self._vary,
        }
        self._nexts = {name: nexts[name] for name in config.sources if name in WRITTEN}

    def accomplished(self, texts: Sequence[str]) -> None:
        """Note new accomplishments, for `relabel`."""
        if "relabel" in self._config.sources:
            self._events += texts

    def next(self) -> Question | None:
        """The next question, of each source in turn; None where there is none now. Until it is `answered`, it stays the
        next, or what has become more urgent to its source is."""
        names = [*self._nexts]
        for name in names[self._turn :] + names[: self._turn]:
            if (question := self._nexts[name]()) is not None:
                return question
        return None

    def answered(self, question: Question, text: str) -> Proposal | None:
        """What the answer `text`, empty for none, proposes; the question counts as asked."""
        self._turn = ([*self._nexts].index(question.source) + 1) % len(self._nexts)
        match question.source:
            case "suggest":
                self._suggestions.note("suggest", question.key, 1, ())
            case "decompose":
                self._is_decomposed = True
            case "relabel":
                shown = set(question.fields["events"].decode().split("\n"))
                self._events = deque([event for event in self._events if event not in shown], MAX_WAITING)
            case "compose":
                self._composed = set(self._mastered())
            case "vary":
                self._varied.add(question.key)
                if text and self._is_hopeless(question.key):
                    self._book.retire(question.key)
        lines = tuple(text.split("\n")) if text else ()
        if question.source == "compose" and lines:
            lines = (chain(lines),)
        parent = question.key if question.source == "vary" else NONE
        state = question.key if question.source == "suggest" else NO_STATE
        is_plan = question.source == "decompose" and self._config.ordered
        made = Proposal(texts=lines, source=question.source, parent=parent, state=state, is_plan=is_plan)
        return made if lines else None

    def _is_hopeless(self, goal: int) -> bool:
        """Whether a goal that fails was invented and never achieved, so that its variant takes its place. Not one that
        others wait for: these could never be paid."""
        goals = self._book.goals
        is_awaited = any(each.before == goal for each in goals)
        return goals[goal].source in WRITTEN and not is_awaited and not self._statistics.totals["achieved"][goal]

    def _suggest(self) -> Question | None:
        found = self._suggestions.next_state("suggest", 1)
        if found is None:
            return None
        state, _ = found
        return Question(source="suggest", brief="suggest_goals", fields={"state": state.text.encode()}, key=state.id)

    def _decompose(self) -> Question | None:
        if self._is_decomposed:
            return None
        return Question(source="decompose", brief="decompose_task", fields={"task": self._config.task.encode()})

    def _relabel(self) -> Question | None:
        if not self._events:
            return None
        events = "\n".join(islice(self._events, MAX_EVENTS))
        return Question(source="relabel", brief="relabel_goals", fields={"events": events.encode()})

    def _compose(self) -> Question | None:
        mastered = self._mastered()
        if len(mastered) < MIN_MASTERED or set(mastered) <= self._composed:
            return None
        new_first = sorted(mastered, key=lambda goal: (goal in self._composed, -goal))
        lines = "\n".join(self._book.goals[goal].text for goal in new_first[:MAX_SHOWN])
        return Question(source="compose", brief="compose_goals", fields={"mastered": lines.encode()})

    def _mastered(self) -> list[int]:
        return [*self._known(self._statistics.success_rates >= MASTERED)]

    def _vary(self) -> Question | None:
        failed = self._known(self._statistics.success_rates < FAILED)
        goal = next((goal for goal in failed if goal not in self._varied), None)
        if goal is None:
            return None
        fields = {"failed": self._book.goals[goal].text.encode()}
        return Question(source="vary", brief="vary_goals", fields=fields, key=goal)

    def _known(self, wanted: np.ndarray) -> Iterator[int]:
        """The active goals among `wanted` [256] bool that were tried often enough."""
        is_known = wanted & self._book.active() & (self._statistics.tries >= MIN_TRIES)
        return iter(np.flatnonzero(is_known).tolist())

    def state_dict(self) -> dict[str, Any]:
        """What was asked, but for what `Suggestions` keeps."""
        return {
            "events": [*self._events],
            "is_decomposed": self._is_decomposed,
            "composed": sorted(self._composed),
            "varied": sorted(self._varied),
            "turn": self._turn,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._events = deque(state["events"], MAX_WAITING)
        self._is_decomposed, self._turn = state["is_decomposed"], state["turn"]
        self._composed, self._varied = set(state["composed"]), set(state["varied"])


def chain(steps: Sequence[str]) -> str:
    """Steps in words as one goal; the last ones are left out where it would be too long."""
    text = steps[0]
    for step in steps[1:]:
        if len(text) + len(step) + len(", then ") > MAX_CHARS:
            break
        text += f", then {step}"
    return text
