"""`Judge`: the annotation service without its network. Items in, judgements out.

Invariant: an item is asked of the model at most once at a time, whoever asks for it, and not at all where the store knows it;
a request that is cancelled leaves no work behind that nobody else wants; what waits is bounded, and more is refused.

One worker thread does everything slow:

    submit (any thread) ──▶ fresh ──store look-up──▶ waiting ──engine, `batch_size` at a time──▶ store, futures
"""

import logging
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from configs.service_schema import ServiceConfig
from llm_server.annotation import Judgement, PairJudgement, Score, ServiceDescription, Status
from llm_server.encoder import SentenceEncoder
from llm_server.engine import Engine, build_engine, find_threshold
from llm_server.pair_order import both_orders, combine_orders
from llm_server.rubric import Rubric
from llm_server.store import JudgementStore, open_store

logger = logging.getLogger(__name__)

MAX_PENDING_REQUESTS = 8
"""Items of this many of the largest requests may wait; more are refused."""
CLOSE_TIMEOUT_S = 5.0


class JudgeBusyError(RuntimeError):
    """Too much is waiting already; ask again later."""


class JudgeClosedError(RuntimeError):
    """The judge was closed before it answered."""


class JudgeFailedError(RuntimeError):
    """The model failed on these items."""


@dataclass(frozen=True, slots=True)
class _Key:
    item: bytes
    bypass_store: bool
    second: bytes | None = None
    """The item shown after it, where the two are compared."""

    @property
    def stored_as(self) -> bytes:
        return self.item if self.second is None else b"%d:%b%b" % (len(self.item), self.item, self.second)


@dataclass(eq=False, slots=True)
class _Request:
    keys: list[_Key]
    missing: set[_Key]
    answers: dict[_Key, Judgement]
    future: "Future[list[Judgement]]" = field(default_factory=Future)


@dataclass(eq=False, slots=True)
class _Question:
    text: str
    second: str = ""
    requests: list[_Request] = field(default_factory=list)


def build_judge(config: ServiceConfig, rubric: Rubric) -> "Judge":
    """A judge that is ready to answer: engine loaded, theta found, store open. ValueError for a bad configuration."""
    if config.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {config.batch_size}")
    store = open_store(config.store)
    try:
        engine = build_engine(config, rubric)
        try:
            return Judge(engine, rubric, store, config)
        except BaseException:
            engine.close()
            raise
    except BaseException:
        if store:
            store.close()
        raise


class Judge:
    """Judges items, and pairs of them, under one rubric, and embeds them; thread-safe. It owns the engine's thread and the store."""

    def __init__(self, engine: Engine, rubric: Rubric, store: JudgementStore | None, config: ServiceConfig):
        self._engine, self._rubric, self._store, self._config = engine, rubric, store, config
        self._encoder = SentenceEncoder(config)
        self._threshold = find_threshold(engine, rubric)
        self._forward_passes = 0
        self._changed = threading.Condition()
        self._questions: dict[_Key, _Question] = {}  # asked for and not answered yet, those in the engine included
        self._fresh: dict[_Key, None] = {}  # not looked up yet, in the order asked
        self._waiting: dict[_Key, None] = {}  # not in the store, in the order asked
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="judge", daemon=True)
        self._worker.start()

    def annotate(self, items: Sequence[bytes], bypass_store: bool = False) -> list[Judgement]:
        """One judgement per item, in the order asked; waits for them. Raises what `submit` and its future raise."""
        return self.submit(items, bypass_store).result()

    def submit(self, items: Sequence[bytes], bypass_store: bool = False) -> "Future[list[Judgement]]":
        """A future of one judgement per item, in the order asked; never waits. Cancelling it withdraws the request.

        With `bypass_store` the store is neither read nor written. Raises ValueError where the request breaks a limit,
        JudgeBusyError, JudgeClosedError; the future raises JudgeClosedError or JudgeFailedError.
        """
        self._check(len(items), items)
        return self._submit([_Key(item, bypass_store) for item in items])

    def annotate_pairs(self, pairs: Sequence[tuple[bytes, bytes]], bypass_store: bool = False) -> list[PairJudgement]:
        """One judgement per pair, in the order asked; waits for them. Raises what `submit_pairs` and its future raise."""
        return self.submit_pairs(pairs, bypass_store).result()

    def submit_pairs(self, pairs: Sequence[tuple[bytes, bytes]], bypass_store: bool = False) -> "Future[list[PairJudgement]]":
        """A future of one judgement per pair; like `submit`, each pair being asked in both orders. ValueError also where the
        rubric compares no pairs. Two items that read alike are a tie and are not asked."""
        self._rubric.pair_question()
        self._check(len(pairs), [item for pair in pairs for item in pair])
        texts = [(self._rubric.item_text(first), self._rubric.item_text(second)) for first, second in pairs]
        asked = [position for position, (first, second) in enumerate(texts) if first != second]
        orders = self._submit(
            [_Key(first, bypass_store, second) for pair in (pairs[n] for n in asked) for first, second in both_orders(pair)]
        )
        assert self._rubric.pairs is not None
        return combine_orders(orders, texts, asked, self._rubric.pairs.tie_margin)

    def embed(self, items: Sequence[bytes]) -> np.ndarray:
        """[N, D] f32 of unit length, one row per item in their order, NaN for an item that is no text. The first call loads the encoder.

        Raises ValueError where the request breaks a limit or no encoder can be loaded.
        """
        self._check(len(items), items)
        return self._encoder.encode([self._rubric.item_text(item) for item in items])

    def _submit(self, keys: list[_Key]) -> "Future[list[Judgement]]":
        if not self._engine.judges:
            raise ValueError("this service was started with engine none: it embeds and does not judge; start one with an engine")
        questions = {key: self._question(key) for key in keys}
        rejected = Judgement(status=Status.REJECTED, probability=math.nan, answer_mass=0.0)
        request = _Request(
            keys=keys,
            missing={key for key, question in questions.items() if question},
            answers={key: rejected for key, question in questions.items() if not question},
        )
        with self._changed:
            self._admit(request, questions)
            self._changed.notify()
        if not request.missing:
            _finish(request)
        request.future.add_done_callback(lambda future: self._withdraw(request) if future.cancelled() else None)
        return request.future

    def _question(self, key: _Key) -> _Question | None:
        text = self._rubric.item_text(key.item)
        second = "" if key.second is None else self._rubric.item_text(key.second)
        return None if text is None or second is None else _Question(text, second)

    def describe(self) -> ServiceDescription:
        """What judges here, and within which limits."""
        return ServiceDescription(
            model=self._engine.model,
            engine=self._engine.name,
            fingerprint=self._engine.fingerprint,
            rubric_id=self._rubric.id,
            rubric_version=self._rubric.version,
            rubric_hash=self._rubric.content_hash,
            pairs_hash=self._rubric.pairs_hash,
            threshold=self._threshold,
            max_items_per_request=self._config.max_items_per_request,
            max_item_bytes=self._config.max_item_bytes,
            forward_passes=self._forward_passes,
        )

    def close(self) -> None:
        """Stop after the batch under way, or before where the engine waits for another process; unanswered requests fail with JudgeClosedError."""
        with self._changed:
            self._closed = True
            unanswered = {request for question in self._questions.values() for request in question.requests}
            self._questions.clear()
            self._changed.notify_all()
        for request in unanswered:
            _finish(request, JudgeClosedError("the judge was closed before it answered"))
        self._engine.close()
        self._worker.join(CLOSE_TIMEOUT_S)
        if self._store:
            self._store.close()

    def _check(self, num: int, items: Sequence[bytes]) -> None:
        """ValueError where a request of `num` items or pairs, which hold `items`, breaks a limit."""
        most, longest = self._config.max_items_per_request, self._config.max_item_bytes
        if not num:
            raise ValueError("the request has no items: send at least one")
        if num > most:
            raise ValueError(f"the request has {num} items, at most {most} are taken: split it")
        for position, item in enumerate(items):
            if len(item) > longest:
                raise ValueError(f"item {position} has {len(item)} bytes, at most {longest} are taken: shorten it")

    def _admit(self, request: _Request, questions: Mapping[_Key, _Question | None]) -> None:
        if self._closed:
            raise JudgeClosedError("the judge is closed")
        limit = MAX_PENDING_REQUESTS * self._config.max_items_per_request
        if len(self._questions.keys() | request.missing) > limit:
            raise JudgeBusyError(f"{len(self._questions)} items wait already, at most {limit} may: ask again later")
        for key in dict.fromkeys(request.keys):
            question = questions[key]
            if question is None:
                continue
            if key not in self._questions:
                self._questions[key] = question
                (self._waiting if key.bypass_store or not self._store else self._fresh)[key] = None
            self._questions[key].requests.append(request)

    def _withdraw(self, request: _Request) -> None:
        with self._changed:
            for key in request.missing:
                question = self._questions.get(key)
                if question and request in question.requests:
                    question.requests.remove(request)
                    if not question.requests:
                        # One that is with the engine already goes into the store all the same.
                        del self._questions[key]
                        self._fresh.pop(key, None)
                        self._waiting.pop(key, None)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fresh or self._waiting or self._closed)
                if self._closed:
                    return
                fresh = list(self._fresh)
                self._fresh.clear()
            if fresh:
                self._look_up(fresh)
            with self._changed:
                batch = [(key, self._questions[key]) for key in islice(self._waiting, self._config.batch_size)]
                for key, _ in batch:
                    del self._waiting[key]
            for is_pair in (False, True):
                if same := [(key, question) for key, question in batch if (key.second is not None) == is_pair]:
                    self._ask(same, is_pair)

    def _look_up(self, keys: Sequence[_Key]) -> None:
        assert self._store is not None
        found: dict[_Key, Judgement] = {}
        for is_pair in (False, True):
            wanted = {key.stored_as: key for key in keys if (key.second is not None) == is_pair}
            if wanted:
                stored = self._store.look_up(self._engine.fingerprint, self._rubric_hash(is_pair), list(wanted))
                found |= {wanted[name]: judgement for name, judgement in stored.items()}
        with self._changed:
            self._waiting.update((key, None) for key in keys if key not in found and key in self._questions)
        self._answer(found)

    def _rubric_hash(self, is_pair: bool) -> str:
        return self._rubric.pairs_hash if is_pair else self._rubric.content_hash

    def _ask(self, batch: Sequence[tuple[_Key, _Question]], is_pair: bool) -> None:
        try:
            if is_pair:
                scores = self._engine.score_pairs([(question.text, question.second) for _, question in batch])
            else:
                scores = self._engine.score([question.text for _, question in batch])
        except Exception as error:  # whatever the model raises, the other items and the service live on
            logger.exception("the model failed on %d items", len(batch))
            self._fail([key for key, _ in batch], error)
            return
        self._forward_passes += len(batch)
        minimum = self._rubric.pairs.min_answer_mass if is_pair and self._rubric.pairs else self._rubric.min_answer_mass
        answers = {key: _judgement(score, minimum) for (key, _), score in zip(batch, scores, strict=True)}
        # Numbers that broke are no answer of this model: they may come out whole the next time.
        keep = {key.stored_as: judgement for key, judgement in answers.items() if not key.bypass_store and judgement.answer_mass > 0}
        if self._store and keep:
            self._store.put(self._engine.fingerprint, self._rubric_hash(is_pair), keep)
        self._answer(answers)

    def _answer(self, answers: Mapping[_Key, Judgement]) -> None:
        complete = []
        with self._changed:
            for key, judgement in answers.items():
                for request in self._take(key):
                    request.answers[key] = judgement
                    request.missing.discard(key)
                    if not request.missing:
                        complete.append(request)
        for request in complete:
            _finish(request)

    def _fail(self, keys: Iterable[_Key], error: Exception) -> None:
        with self._changed:
            requests = {request for key in keys for request in self._take(key)}
        for request in requests:
            _finish(request, JudgeFailedError(f"the model failed on this batch: {type(error).__name__}: {error}"))
            self._withdraw(request)

    def _take(self, key: _Key) -> list[_Request]:
        question = self._questions.pop(key, None)
        return question.requests if question else []


def _judgement(score: Score, min_answer_mass: float) -> Judgement:
    mass = score.answer_mass if math.isfinite(score.answer_mass) else 0.0
    if mass < min_answer_mass or not math.isfinite(score.probability):
        return Judgement(status=Status.UNPARSED, probability=math.nan, answer_mass=mass)
    return Judgement(status=Status.OK, probability=score.probability, answer_mass=mass)


def _finish(request: _Request, error: Exception | None = None) -> None:
    with suppress(InvalidStateError):  # cancelled in the meantime, or failed with another of its items
        if error:
            request.future.set_exception(error)
        else:
            request.future.set_result([request.answers[key] for key in request.keys])
