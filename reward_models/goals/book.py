"""`GoalBook`: the goals of a run, at most 256, each with its text, sentence vector, source and place in a plan.

Invariant: a goal's index, text and vector never change within a run, and no index is used twice, a resume included; no
two goals have the same text, or, but for missions, a cosine of `merge_similarity` or more.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from configs.goal_schema import GOAL_WIDTH, MAX_GOALS
from llm_server.rubrics.question import plain_line

MAX_CHARS = 100
"""Of a goal's text."""
NONE = -1
"""In place of a goal's index."""


def goal_text(text: str) -> str:
    """`text` as one printable line without outer and repeated spaces; empty where it has none, or more than
    MAX_CHARS. A goal's text is treated as a caption is: it can come from a language model or an environment."""
    line = plain_line(text[: 100 * MAX_CHARS], MAX_CHARS + 2)
    return line if len(line) <= MAX_CHARS else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One goal; its index is its place in the book."""

    text: str
    source: str
    """One of `configs.goal_schema.SOURCES`; empty where it was forgotten."""
    parent: int = NONE
    """The goal that it is a variant of."""
    before: int = NONE
    """Its place in a plan: the goal that must be achieved first in an episode."""
    is_copy: bool = False
    """Its text is that of a caption, word for word."""
    is_active: bool = True
    """Whether it is paid and given."""


class GoalBook:
    """Thread-safe."""

    def __init__(self, merge_similarity: float = 0.9) -> None:
        self.revision = 0
        """Increases whenever a goal comes, gets a place in a plan, or is no longer active."""
        self.num_refused = 0
        """Texts that were empty, too long or no text, or for which there was no room."""
        self._merge_similarity = merge_similarity
        self._lock = threading.RLock()
        self._goals: list[Goal] = []
        self._vectors = np.empty((0, GOAL_WIDTH), np.float32)  # replaced, never changed
        self._index: dict[str, int] = {}  # by text, those of merged goals included

    def __len__(self) -> int:
        return len(self._goals)

    @property
    def goals(self) -> tuple[Goal, ...]:
        """All goals in the order of their indices."""
        with self._lock:
            return tuple(self._goals)

    @property
    def vectors(self) -> np.ndarray:
        """[G, D] f32 of unit length; not to be changed."""
        return self._vectors

    def find(self, text: str) -> int:
        """The index of the goal that a text, as `goal_text` makes it, is known to be; NONE for a new one."""
        return self._index.get(text, NONE)

    def nearest(self, vectors: np.ndarray, num: int) -> tuple[int, list[dict[int, str]]]:
        """How many goals there are, and the `num` active ones nearest to each of `vectors` [N, D] f32, the nearest
        first: index -> text."""
        with self._lock:
            goals, known = self._goals[:], self._vectors
        active = np.array([index for index, goal in enumerate(goals) if goal.is_active], np.int64)
        if not len(active):
            return len(goals), [{} for _ in vectors]
        order = np.argsort(-(vectors @ known[active].T), axis=1, kind="stable")[:, :num]
        return len(goals), [{int(index): goals[index].text for index in row} for row in active[order]]

    def add(self, goal: Goal, vector: np.ndarray) -> int:
        """The index of `goal`, whose sentence has this `vector` [D] f32 of unit length: that of a known goal where it
        is one (but two missions are two goals, however alike they sound). NONE where it is refused and counted: it has
        no vector (NaN), or the book is full. Raises ValueError for a vector of another encoder."""
        with self._lock:
            index = self.find(goal.text)
            if index == NONE and goal.source != "missions" and not np.isnan(vector).any():
                index = self._similar(vector)
            if index == NONE:
                return self._new(goal, vector)
            if len(self._index) < 100 * MAX_GOALS:  # else it is compared again when it comes again
                self._index[goal.text] = index
            return index

    def _similar(self, vector: np.ndarray) -> int:
        if not self._goals:
            return NONE
        if vector.shape != self._vectors.shape[1:]:
            got = f"got a vector of {len(vector)} numbers, those of earlier goals have {self._vectors.shape[1]}"
            raise ValueError(f"{got}: start the service with the same --encoder as before")
        cosines = (self._vectors * vector).sum(1)
        nearest = int(cosines.argmax())
        return nearest if cosines[nearest] >= self._merge_similarity else NONE

    def _new(self, goal: Goal, vector: np.ndarray) -> int:
        if np.isnan(vector).any() or len(self._goals) == MAX_GOALS:
            self.refuse()
            return NONE
        self._goals.append(goal)
        self._vectors = np.concatenate([self._vectors.reshape(-1, len(vector)), vector[None]]).astype(np.float32)
        self._index[goal.text] = len(self._goals) - 1
        self.revision += 1
        return len(self._goals) - 1

    def adopt(self, texts: Sequence[str], vectors: np.ndarray, before: np.ndarray, is_active: np.ndarray) -> None:
        """Become the book of these goals [G], of which this one's own are the first; the sources of the others are not
        known any more. `before` and `is_active` are as the methods of these names give them. Does nothing where this
        book is not their beginning."""
        with self._lock:
            known = [goal.text for goal in self._goals]
            if known != [*texts[: len(known)]]:
                return
            for index in range(len(known), len(texts)):
                self._new(Goal(text=texts[index], source=""), vectors[index])
            for index in range(len(self._goals)):
                self.place(index, int(before[index]))
                if not is_active[index]:
                    self.retire(index)

    def refuse(self, num: int = 1) -> None:
        """Count texts that are no goals."""
        with self._lock:
            self.num_refused += num

    def place(self, index: int, before: int) -> None:
        """Give a goal its place in a plan, after the goal `before`, unless it has one or precedes that goal itself."""
        with self._lock:
            earlier = before
            while earlier not in (NONE, index):
                earlier = self._goals[earlier].before
            if earlier == NONE and self._goals[index].before == NONE and before != NONE:
                self._goals[index] = replace(self._goals[index], before=before)
                self.revision += 1

    def retire(self, index: int) -> None:
        """The goal is no longer paid or given."""
        with self._lock:
            if self._goals[index].is_active:
                self._goals[index] = replace(self._goals[index], is_active=False)
                self.revision += 1

    def active(self) -> np.ndarray:
        """[256] bool: which indices are those of active goals."""
        is_active = np.zeros(MAX_GOALS, bool)
        goals = self.goals
        is_active[: len(goals)] = [goal.is_active for goal in goals]
        return is_active

    def before(self) -> np.ndarray:
        """[256] i16: the goal that must be achieved before each; NONE for none."""
        places = np.full(MAX_GOALS, NONE, np.int16)
        goals = self.goals
        places[: len(goals)] = [goal.before for goal in goals]
        return places

    def state_dict(self) -> dict[str, Any]:
        """The whole book."""
        with self._lock:
            merged = [[text, index] for text, index in self._index.items() if self._goals[index].text != text]
            return {
                "goals": [
                    [goal.text, goal.source, goal.parent, goal.before, goal.is_copy, goal.is_active]
                    for goal in self._goals
                ],
                "vectors": self._vectors,
                "merged": merged,
                "num_refused": self.num_refused,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        with self._lock:
            names = ("text", "source", "parent", "before", "is_copy", "is_active")
            self._goals = [Goal(**dict(zip(names, values, strict=True))) for values in state["goals"]]
            self._vectors = np.asarray(state["vectors"], np.float32)
            self._index = {goal.text: index for index, goal in enumerate(self._goals)}
            self._index |= dict(state["merged"])
            self.num_refused = state["num_refused"]
            self.revision += 1
