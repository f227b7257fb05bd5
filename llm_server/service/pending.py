"""`PendingQuestions`: what was asked of a judge and is not answered yet.

Invariant: a question waits once, however many requests want it; one that no request wants any more is forgotten, wherever it
stands; every request's future is finished exactly once, outside the lock; what waits is bounded, and more is refused.

    admit ──▶ fresh ──take_fresh, to_be_asked──▶ waiting ──take_batch──▶ with the engine ──answer or fail──▶ futures
"""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from llm_server.annotation import Judgement, Status


class JudgeBusyError(RuntimeError):
    """Too much is waiting already; ask again later."""


class JudgeClosedError(RuntimeError):
    """The judge was closed before it answered."""


class JudgeFailedError(RuntimeError):
    """The model failed on these items."""


@dataclass(frozen=True, slots=True)
class Key:
    """What makes two questions the same."""

    item: bytes
    bypass_store: bool
    second: bytes | None = None
    """The item shown after it, where the two are compared."""

    @property
    def is_pair(self) -> bool:
        """Whether two items are compared."""
        return self.second is not None

    @property
    def stored_as(self) -> bytes:
        """The item's, or the pair's, name in the judgement store."""
        return self.item if self.second is None else b"%d:%b%b" % (len(self.item), self.item, self.second)


@dataclass(eq=False, slots=True)
class PendingQuestion:
    """The texts of one key, and who waits for the answer."""

    text: str
    second: str = ""
    requests: "list[_Request]" = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Request:
    keys: Sequence[Key]
    missing: set[Key]
    answers: dict[Key, Judgement]
    future: "Future[list[Judgement]]" = field(default_factory=Future)


class PendingQuestions:
    """Thread-safe; one thread works it off."""

    def __init__(self, max_questions: int, *, has_store: bool) -> None:
        self._max_questions, self._has_store = max_questions, has_store
        self._changed = threading.Condition()
        self._questions: dict[Key, PendingQuestion] = {}  # asked for and not answered yet, those in the engine included
        self._fresh: dict[Key, None] = {}  # not looked up yet, in the order asked
        self._waiting: dict[Key, None] = {}  # not in the store, in the order asked
        self._closed = False

    def admit(self, questions: Mapping[Key, PendingQuestion | None], keys: Sequence[Key]) -> "Future[list[Judgement]]":
        """A future of one judgement per key, in their order; a key without a question is REJECTED. Cancelling it withdraws the request.

        Raises JudgeClosedError and JudgeBusyError.
        """
        rejected = Judgement(status=Status.REJECTED, probability=math.nan, answer_mass=0.0)
        asked = {key: question for key, question in questions.items() if question}
        request = _Request(keys, set(asked), {key: rejected for key in questions if key not in asked})
        with self._changed:
            if self._closed:
                raise JudgeClosedError("the judge is closed")
            if len(self._questions.keys() | asked.keys()) > self._max_questions:
                raise JudgeBusyError(
                    f"{len(self._questions)} items wait already, at most {self._max_questions} may: ask again later"
                )
            for key, question in asked.items():
                if key not in self._questions:
                    self._questions[key] = question
                    (self._fresh if self._has_store and not key.bypass_store else self._waiting)[key] = None
                self._questions[key].requests.append(request)
            self._changed.notify()
        if not asked:
            _finish(request)
        request.future.add_done_callback(lambda future: self._withdraw(request) if future.cancelled() else None)
        return request.future

    def take_fresh(self) -> list[Key] | None:
        """Keys that were not looked up yet, none where only others wait; waits for either. None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._fresh or self._waiting or self._closed)
            fresh = list(self._fresh)
            self._fresh.clear()
            return None if self._closed else fresh

    def to_be_asked(self, keys: Iterable[Key]) -> None:
        """These are not in the store; those that nobody wants any more are passed over."""
        with self._changed:
            self._waiting.update((key, None) for key in keys if key in self._questions)

    def take_batch(self, size: int) -> list[tuple[Key, PendingQuestion]]:
        """The `size` keys that have waited longest, for the engine."""
        with self._changed:
            batch = [(key, self._questions[key]) for key in islice(self._waiting, size)]
            for key, _ in batch:
                del self._waiting[key]
            return batch

    def answer(self, answers: Mapping[Key, Judgement]) -> None:
        """Hand the answers to whoever waits for them by now."""
        complete = []
        with self._changed:
            for key, judgement in answers.items():
                for request in self._forget(key):
                    request.answers[key] = judgement
                    request.missing.discard(key)
                    if not request.missing:
                        complete.append(request)
        for request in complete:
            _finish(request)

    def fail(self, keys: Iterable[Key], error: Exception) -> None:
        """Fail all requests that wait for one of these, with JudgeFailedError."""
        with self._changed:
            requests = {request for key in keys for request in self._forget(key)}
        for request in requests:
            _finish(request, JudgeFailedError(f"the model failed on this batch: {type(error).__name__}: {error}"))
            self._withdraw(request)

    def close(self) -> None:
        """Fail all requests, and later ones, with JudgeClosedError."""
        with self._changed:
            self._closed = True
            unanswered = {request for question in self._questions.values() for request in question.requests}
            for key in list(self._questions):
                self._forget(key)
            self._changed.notify_all()
        for request in unanswered:
            _finish(request, JudgeClosedError("the judge was closed before it answered"))

    def _withdraw(self, request: _Request) -> None:
        with self._changed:
            for key in request.missing:
                question = self._questions.get(key)
                if question and request in question.requests:
                    question.requests.remove(request)
                    if not question.requests:
                        self._forget(key)  # one that is with the engine already goes into the store all the same

    def _forget(self, key: Key) -> list[_Request]:
        """Take the question out, wherever it stands: it may wait again while an earlier one is with the engine. Its requests."""
        self._fresh.pop(key, None)
        self._waiting.pop(key, None)
        question = self._questions.pop(key, None)
        return question.requests if question else []


def _finish(request: _Request, error: Exception | None = None) -> None:
    with suppress(InvalidStateError):  # cancelled in the meantime, or failed with another of its items
        if error:
            request.future.set_exception(error)
        else:
            request.future.set_result([request.answers[key] for key in request.keys])
