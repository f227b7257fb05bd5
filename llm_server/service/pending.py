"""`PendingQuestions`: the questions of a judge that are not answered yet.

Invariant: a question is queued once, however many requests want it; one that no request wants any more is dropped from
every queue; every request's future is completed exactly once, outside the lock; the queue is bounded, and refuses more.

    admit ──▶ fresh ──take_fresh, to_be_asked──▶ waiting ──take_batch──▶ with the engine ──answer or fail──▶ futures
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

from llm_server.annotation import Judgement, Status
from llm_server.wire import asked_bytes, pair_bytes

S = TypeVar("S")
T = TypeVar("T")


class JudgeBusyError(RuntimeError):
    """Too many items are waiting already; retry later."""


class JudgeClosedError(RuntimeError):
    """The judge was closed before it answered."""


class JudgeFailedError(RuntimeError):
    """The model failed on these items."""


class Key(NamedTuple):
    """Identity of a question: requests with equal keys share one answer. A tuple, because it is hashed ten times."""

    item: bytes
    bypass_store: bool
    second: bytes | None = None
    """The item shown after `item`, where the two are compared."""
    about: bytes = b""
    """What `item` is judged about, if anything."""
    rubric: int = 0
    """Number of the rubric in the judge."""

    @property
    def form(self) -> tuple[int, bool]:
        """The rubric's number and whether two items are compared: questions of one form are asked together."""
        return self.rubric, self.second is not None

    @property
    def stored_as(self) -> bytes:
        """The item's, or the pair's, key in the judgement store of its rubric."""
        return asked_bytes(self.item, self.about) if self.second is None else pair_bytes(self.item, self.second)


@dataclass(eq=False, slots=True)
class PendingQuestion:
    """The texts of one key, and the requests that wait for the answer."""

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
    """Thread-safe; one worker thread takes from it."""

    def __init__(self, max_questions: int, *, has_store: bool) -> None:
        self._max_questions, self._has_store = max_questions, has_store
        self._changed = threading.Condition()
        self._questions: dict[Key, PendingQuestion] = {}  # not answered yet, those in the engine included
        self._fresh: dict[Key, None] = {}  # not looked up yet, oldest first
        self._waiting: dict[Key, None] = {}  # not in the store, oldest first
        self._closed = False

    def admit(self, questions: Mapping[Key, PendingQuestion | None], keys: Sequence[Key]) -> "Future[list[Judgement]]":
        """A future of one judgement per key, in order; REJECTED without a question. Cancelling withdraws the request.

        Raises JudgeClosedError and JudgeBusyError.
        """
        rejected = Judgement(status=Status.REJECTED, probability=math.nan, answer_mass=0.0)
        asked = {key: question for key, question in questions.items() if question}
        request = _Request(keys, set(asked), {key: rejected for key in questions if key not in asked})
        with self._changed:
            if self._closed:
                raise JudgeClosedError("the judge is closed")
            if len(self._questions) + sum(key not in self._questions for key in asked) > self._max_questions:
                limit = f"at most {self._max_questions} may: ask again later"
                raise JudgeBusyError(f"{len(self._questions)} items wait already, {limit}")
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
        """Wait for keys and return those that were not looked up yet (perhaps none). None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._fresh or self._waiting or self._closed)
            fresh = list(self._fresh)
            self._fresh.clear()
            return None if self._closed else fresh

    def to_be_asked(self, keys: Iterable[Key]) -> None:
        """Queue keys that are not in the store for the engine; those that no request wants any more are skipped."""
        with self._changed:
            self._waiting.update((key, None) for key in keys if key in self._questions)

    def take_batch(self, size: int) -> list[tuple[Key, PendingQuestion]]:
        """Take for the engine up to `size` keys of the form of the one that has waited longest, oldest first."""
        with self._changed:
            form = next((key.form for key in self._waiting), None)
            same = (key for key in self._waiting if key.form == form)
            batch = [(key, self._questions[key]) for key in islice(same, size)]
            for key, _ in batch:
                del self._waiting[key]
            return batch

    def answer(self, answers: Mapping[Key, Judgement]) -> None:
        """Give the answers to the requests that wait for them."""
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
        """Fail all requests that wait for one of `keys`, with JudgeFailedError."""
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
                        self._forget(key)  # if the engine has it already, its answer is stored all the same

    def _forget(self, key: Key) -> list[_Request]:
        """Remove the question from every queue (an earlier one may be with the engine); returns its requests."""
        self._fresh.pop(key, None)
        self._waiting.pop(key, None)
        question = self._questions.pop(key, None)
        return question.requests if question else []


def map_future(source: "Future[S]", transform: Callable[[S], T]) -> "Future[T]":
    """A future of `transform` of the result of `source`. Cancelling it cancels `source`."""
    mapped: Future[T] = Future()

    def finish(done: "Future[S]") -> None:
        with suppress(InvalidStateError):  # cancelled in the meantime
            if done.cancelled():
                mapped.cancel()
            elif error := done.exception():
                mapped.set_exception(error)
            else:
                mapped.set_result(transform(done.result()))

    source.add_done_callback(finish)
    mapped.add_done_callback(lambda future: source.cancel() if future.cancelled() else None)
    return mapped


def _finish(request: _Request, error: Exception | None = None) -> None:
    with suppress(InvalidStateError):  # cancelled in the meantime, or failed with another of its items
        if error:
            request.future.set_exception(error)
        else:
            request.future.set_result([request.answers[key] for key in request.keys])
