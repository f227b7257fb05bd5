"""`RunGoals`: everything that a run knows of its goals: the book, what may enter it, what is suggested where, how often
goals are achieved; and what of it is published.

    texts of all sources ──▶ proposals ──vectors──▶ goal book ─┐
    states ──▶ suggestions ────────────────────────────────────┼──▶ PublishedGoals
    workers' counts ──▶ statistics ──▶ relevance, sampling ────┘

Invariant: a proposal is dropped only where it waits behind MAX_PROPOSALS others, and counted; whatever enters the book
does so in the order in which it was proposed; versions only increase.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
from xxhash import xxh3_64_intdigest

from configs.goal_schema import MAX_GOALS, GoalsConfig
from llm_server.annotation import Caption
from llm_server.annotator.caption_book import CaptionBook
from reward_models.goals.book import NONE, Goal, GoalBook, goal_text
from reward_models.goals.masks import WORDS
from reward_models.goals.published import PublishedGoals
from reward_models.goals.sources import NO_STATE, Proposal, Question, WrittenGoals
from reward_models.goals.statistics import GoalStatistics
from reward_models.goals.suggestions import Suggestions
from reward_models.goals.weights import goal_weights, sampling_weights

MAX_PROPOSALS = 4096
MAX_EMBEDDED = 64
"""Texts whose vectors are asked for at once."""
MAX_WORKERS = 4096
Items: TypeAlias = tuple[Mapping[int, str], Mapping[int, int]]
"""Of one channel of a report: id -> text, and id -> steps that showed it."""


class RunGoals:
    """Thread-safe. `captions` is the book of the items that goals are matched with."""

    def __init__(
        self,
        config: GoalsConfig,
        book: GoalBook,
        captions: CaptionBook,
        *,
        run_epoch: int,
        is_given: bool = False,
        examples: Sequence[str] = (),
    ) -> None:
        """`is_given`: whether the policy is given goals. `examples`: the rubric's positive ones, for the source
        `rubric`."""
        self.published = PublishedGoals(
            version=(run_epoch, 0),
            texts=(),
            vectors=book.vectors,
            weights=np.zeros(MAX_GOALS, np.float32),
            sampling=np.zeros(MAX_GOALS, np.float32),
            before=book.before(),
            suggested_ids=np.empty(0, np.uint64),
            suggested=np.empty((0, WORDS), np.uint64),
        )
        """The newest; never blocks."""
        self._config, self._book, self._captions = config, book, captions
        self._lock = threading.RLock()
        self._statistics, self._suggestions = GoalStatistics(is_given), Suggestions()
        self._written = WrittenGoals(config, book, self._statistics, self._suggestions)
        self._task: np.ndarray | None = None  # its vector
        self._reports: dict[str, int] = {}  # by worker, the newest whose counts were added
        self._is_due = False  # whether something has changed since the last version
        self._proposals: deque[Proposal] = deque()
        if config.texts:
            self._propose(Proposal(texts=tuple(config.texts), source="config", is_plan=config.ordered))
        if "rubric" in config.sources:
            self._propose(Proposal(texts=tuple(examples), source="rubric"))

    def report(
        self,
        channels: Mapping[str, Items],
        worker_id: str,
        sequence_number: int,
        env_steps: int,
        counts: Mapping[str, Any] | None = None,
    ) -> None:
        """Add what a worker saw: states, missions, and counts (see `GoalStatistics.add`), each report once."""
        with self._lock:
            if "state" in channels:
                self._suggestions.states.take_report(*channels["state"], worker_id, sequence_number, env_steps)
            if "missions" in self._config.sources and "mission" in channels:
                for text in channels["mission"][0].values():
                    if self._book.find(goal_text(text)) == NONE:
                        self._propose(Proposal(texts=(text,), source="missions"))
            newest = self._reports.pop(worker_id, -1)
            is_new = sequence_number > newest
            self._reports[worker_id] = max(sequence_number, newest)
            if len(self._reports) > MAX_WORKERS:
                del self._reports[next(iter(self._reports))]
            if counts is not None and is_new:
                self._statistics.add(counts, self._book.active())
                self._is_due = True

    def accomplished(self, texts: Sequence[str]) -> None:
        """Note new items that are accomplishments."""
        with self._lock:
            self._written.accomplished(texts)

    def _propose(self, proposal: Proposal) -> None:
        if proposal in self._proposals:
            return
        if len(self._proposals) == MAX_PROPOSALS:
            self._book.refuse(len(proposal.texts))
        else:
            self._proposals.append(proposal)

    def next_question(self) -> Question | None:
        """What to ask a writer next; None for nothing now, or while many texts wait for their vectors."""
        with self._lock:
            return self._written.next() if len(self._proposals) < MAX_EMBEDDED else None

    def answered(self, question: Question, text: str) -> None:
        """Take a writer's answer, empty for none."""
        with self._lock:
            if (proposal := self._written.answered(question, text)) is not None:
                self._propose(proposal)

    def next_state(self) -> tuple[Caption, dict[int, str]] | None:
        """The state about which `closed` asks next, and the active goals, index -> text, that it has not asked about;
        None where there is none."""
        with self._lock:
            goals = self._book.goals
            if (found := self._suggestions.next_state("closed", len(goals))) is None:
                return None
            state, num_asked = found
            new = {index: goal.text for index, goal in enumerate(goals) if index >= num_asked and goal.is_active}
            return state, new

    def suggest(self, state: Caption, asked: Mapping[int, str], sensible: Sequence[int]) -> None:
        """Suggest the goals `sensible` in a state; all of `asked`, as `next_state` gave them, were asked about."""
        with self._lock:
            self._suggestions.note("closed", state.id, max(asked, default=len(self._book) - 1) + 1, sensible)
            self._is_due |= bool(sensible)

    def texts_without_vector(self) -> list[str]:
        """Texts whose vectors are needed next, at most about MAX_EMBEDDED."""
        with self._lock:
            texts: dict[str, None] = {}
            if self._config.relevance == "learned" and self._task is None:
                texts[self._config.task] = None
            for proposal in self._proposals:
                lines = map(goal_text, proposal.texts)
                texts |= {line: None for line in lines if line and self._book.find(line) == NONE}
                if len(texts) >= MAX_EMBEDDED:
                    break
            return [*texts]

    def settle(self, vectors: Mapping[str, np.ndarray]) -> bool:
        """Enter the first proposals into the book, as far as `vectors` [D] f32 of their texts are given; whether there
        were any. Raises ValueError for vectors of another encoder than before."""
        with self._lock:
            before = len(self._proposals)
            if self._task is None:
                self._task = vectors.get(self._config.task)
            while self._proposals:
                lines = [line for line in map(goal_text, self._proposals[0].texts) if line]
                if any(line not in vectors and self._book.find(line) == NONE for line in lines):
                    break
                self._enter(self._proposals[0], lines, vectors)
                self._proposals.popleft()
            self._is_due |= len(self._proposals) < before
            return len(self._proposals) < before

    def _enter(self, proposal: Proposal, lines: Sequence[str], vectors: Mapping[str, np.ndarray]) -> None:
        self._book.refuse(len(proposal.texts) - len(lines))
        previous = NONE
        for line in lines:
            index = self._book.find(line)
            if index == NONE:
                is_copy = bool(self._captions.captions_of([xxh3_64_intdigest(line.encode())]))
                goal = Goal(text=line, source=proposal.source, parent=proposal.parent, is_copy=is_copy)
                index = self._book.add(goal, vectors[line])
            if index == NONE:
                continue
            if proposal.is_plan:
                self._book.place(index, previous)
            if proposal.state != NO_STATE:
                self._suggestions.add(proposal.state, [index])
            previous = index

    def publish(self) -> None:
        """Publish a new version where anything has changed."""
        with self._lock:
            if not self._is_due:
                return
            self._is_due = False
            task = self._task if self._config.relevance == "learned" else None
            ids, masks = self._suggestions.arrays()
            run_epoch, number = self.published.version
            newer = PublishedGoals(
                version=(run_epoch, number + 1),
                texts=tuple(goal.text for goal in self._book.goals),
                vectors=self._book.vectors,
                weights=goal_weights(self._book, self._statistics, task),
                sampling=sampling_weights(self._config.sampling, self._statistics, self._book.active()),
                before=self._book.before(),
                suggested_ids=ids,
                suggested=masks,
            )
            if not newer.equals(self.published):
                self.published = newer

    def metrics(self) -> dict[str, float | None]:
        """Catalogue metrics."""
        with self._lock:
            rates = self._statistics.success_rates
            tried = rates[~np.isnan(rates)]
            return {
                "goals_active": int(self._book.active().sum()),
                "goals_refused": self._book.num_refused,
                "goals_suggested_per_state": self._suggestions.per_state,
                "goals_achieved_per_episode": self._statistics.achieved_per_episode,
                "goal_success_mean": float(tried.mean()) if len(tried) else None,
            }

    def state_dict(self) -> dict[str, Any]:
        """All of it; workers' report numbers are not saved, see `CaptionBook.state_dict`."""
        with self._lock:
            return {
                "book": self._book.state_dict(),
                "statistics": self._statistics.state_dict(),
                "suggestions": self._suggestions.state_dict(),
                "written": self._written.state_dict(),
                "proposals": [asdict(proposal) | {"texts": [*proposal.texts]} for proposal in self._proposals],
                "task": self._task,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        with self._lock:
            self._book.load_state_dict(state["book"])
            self._statistics.load_state_dict(state["statistics"])
            self._suggestions.load_state_dict(state["suggestions"])
            self._written.load_state_dict(state["written"])
            proposals = [Proposal(**saved | {"texts": tuple(saved["texts"])}) for saved in state["proposals"]]
            self._proposals, self._task = deque(proposals), state["task"]
            self._is_due = True
            self.publish()

    def adopt(self, published: PublishedGoals) -> None:
        """Enter again the goals of a version that was published after the state that was loaded, with their numbers:
        workers and learner know them by these."""
        with self._lock:
            is_active = published.weights[: len(published.texts)] > 0  # a relevance is above 0
            self._book.adopt(published.texts, published.vectors, published.before, is_active)
            self._is_due = True
            self.publish()
