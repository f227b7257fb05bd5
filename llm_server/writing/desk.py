"""`WritingDesk`: what a judge's model is asked to write, one request after the other, in a thread of its own.

Invariant: no writing enters the queue of judgements, so none holds one up beyond what `Engine.write` says; a writing
is made once and then found in the store; what could not be parsed is UNPARSED. The queue is bounded.

    submit (any thread) ──▶ queue ──store look-up──▶ engine ──parsed_answer──▶ store ──▶ future
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from xxhash import xxh3_64_intdigest

from llm_server.annotation import Status, Writing, Written
from llm_server.engines.engine import Engine
from llm_server.rubrics.rubric import Rubric
from llm_server.service.pending import JudgeBusyError, JudgeClosedError, JudgeFailedError
from llm_server.service.store import JudgementStore
from llm_server.writing.answer_text import parsed_answer
from llm_server.writing.brief import Brief

LOG = logging.getLogger(__name__)
MAX_PENDING_REQUESTS = 16
MAX_NUM = 64
"""Writings in one request."""


class WritingDesk:
    """Writes with `engine` in the style of its `rubric`; thread-safe. It owns its thread alone."""

    def __init__(self, engine: Engine, rubric: Rubric, store: JudgementStore | None, max_bytes: int) -> None:
        self._engine, self._store, self._max_bytes = engine, store, max_bytes
        self._style = f"{rubric.style}/{rubric.answer_prefix}"
        self._free_places = threading.Semaphore(MAX_PENDING_REQUESTS)
        self._closed = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="writing")

    @property
    def writes(self) -> bool:
        """Whether it can write at all."""
        return self._engine.writes

    def write(
        self, brief: Brief, fields: Mapping[str, bytes], num: int, seed: int, *, bypass_store: bool = False
    ) -> list[Writing]:
        """`num` writings; waits for them. Raises what `submit` and its future raise."""
        return self.submit(brief, fields, num, seed, bypass_store=bypass_store).result()

    def submit(
        self, brief: Brief, fields: Mapping[str, bytes], num: int, seed: int, *, bypass_store: bool = False
    ) -> "Future[list[Writing]]":
        """A future of `num` writings about `fields`, REJECTED where one is no text; never waits. Cancelling it
        withdraws a request that has not begun. With `bypass_store` the store is neither read nor written.

        Raises ValueError for an engine that does not write, wrong fields, and a number, seed or size beyond its limit,
        JudgeBusyError, JudgeClosedError; the future ValueError where model and brief do not fit, JudgeClosedError,
        JudgeFailedError.
        """
        if not self.writes:
            raise ValueError(
                f"this service cannot write (engine {self._engine.name}): start one with a language model, or for the"
                " engine scripted with service.script_writings"
            )
        if not 1 <= num <= MAX_NUM:
            raise ValueError(f"the request wants {num} writings, 1 to {MAX_NUM} are given: split it")
        if not 0 <= seed < 2**64:
            raise ValueError(f"the seed is {seed}, wanted a whole number in 0 to 2^64 - 1")
        brief.check(fields, self._max_bytes)
        if (text := brief.text(fields)) is None:
            rejected: Future[list[Writing]] = Future()
            rejected.set_result([Writing(status=Status.REJECTED, text="", tokens=0)] * num)
            return rejected
        if not self._free_places.acquire(blocking=False):
            raise JudgeBusyError(f"{MAX_PENDING_REQUESTS} requests wait already for the writer: ask again later")
        try:
            future = self._worker.submit(self._write, brief, text, num, seed, bypass_store)
        except RuntimeError as error:
            self._free_places.release()
            if not self._closed.is_set():  # no thread can be started
                raise
            raise JudgeClosedError("the judge is closed") from error
        future.add_done_callback(lambda _: self._free_places.release())
        return future

    def close(self) -> None:
        """Write nothing more; pending requests fail. The engine is to be closed first, which ends one under way."""
        self._closed.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _write(self, brief: Brief, text: str, num: int, seed: int, bypass_store: bool) -> list[Writing]:
        store = None if bypass_store else self._store
        by, asked = (self._engine.fingerprint, f"{brief.content_hash}/{self._style}"), (text, seed)
        found = store.look_up_writings(by, asked, num) if store else {}
        missing = [number for number in range(num) if number not in found]
        new = {}
        for number, written in zip(missing, self._written(brief, text, seed, missing), strict=True):
            answer = parsed_answer(brief, written.text, is_cut=written.is_cut)
            status = Status.UNPARSED if answer is None else Status.OK
            new[number] = Writing(status=status, text=answer or "", tokens=written.tokens)
        if store:  # where nothing came, a filter or a failure may be the reason: the next attempt may give something
            store.put_writings(by, asked, {number: writing for number, writing in new.items() if writing.tokens})
        return [found.get(number) or new[number] for number in range(num)]

    def _written(self, brief: Brief, text: str, seed: int, numbers: Sequence[int]) -> list[Written]:
        seeds = [xxh3_64_intdigest(b"%d:%d" % (seed, number)) >> 33 for number in numbers]
        try:
            return self._engine.write(brief, text, seeds) if seeds else []
        except ValueError:
            raise
        except Exception as error:
            if self._closed.is_set():
                raise JudgeClosedError("the judge was closed before it had written") from None
            LOG.exception("the model failed to write by brief %s", brief.id)
            raise JudgeFailedError(f"the model failed on this writing: {type(error).__name__}: {error}") from error
