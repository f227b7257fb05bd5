"""`Judge`: the annotation service without its network. Items in, judgements out.

Invariant: the model answers an item once for all concurrent requests, and not at all where the store holds the answer;
the worker thread, which does all slow work, survives every failure. An item split into parts has the judgement of its
most probable part; parts without a label are ignored. A pair is asked in both orders, so that the model's position bias
cancels and is measured: swapping its items turns a preference p into 1 - p exactly.

    submit (any thread) ──▶ queue ──store look-up──▶ queue ──engine, `batch_size` at a time──▶ store, queue ──▶ futures
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import repeat

import numpy as np

from configs.annotation_schema import ServiceConfig
from llm_server.annotation import Judgement, PairJudgement, Score, ServiceDescription, Status, log_odds
from llm_server.engines.building import build_engine
from llm_server.engines.engine import Engine
from llm_server.engines.sentence_encoder import SentenceEncoder
from llm_server.rubrics.rubric import Rubric
from llm_server.service.calibration import calibrate
from llm_server.service.pending import Key, PendingQuestion, PendingQuestions, map_future
from llm_server.service.store import JudgementStore, open_store

LOG = logging.getLogger(__name__)
MAX_PENDING_REQUESTS = 8
"""Items of this many of the largest requests may wait; more are refused."""
CLOSE_TIMEOUT_S = 5.0


def judgement_of_parts(judged: Sequence[Judgement]) -> Judgement:
    """The judgement of the part with the highest probability; where no part has a label, the first."""
    if len(judged) == 1:
        return judged[0]
    best = max(judged, key=lambda part: -math.inf if part.status is not Status.OK else part.probability)
    return replace(best, cached=all(part.cached for part in judged))


def combine_parts(answers: "Future[list[Judgement]]", split: Sequence[Sequence[bytes]]) -> "Future[list[Judgement]]":
    """A future of one judgement per item from `answers` about the parts of all items, item after item; cancelling it
    cancels `answers`. `split` holds each item's parts."""

    def combine(judged: list[Judgement]) -> list[Judgement]:
        rest = iter(judged)
        return [judgement_of_parts([next(rest) for _ in found]) for found in split]

    return map_future(answers, combine)


def pair_judgement(as_given: Judgement, swapped: Judgement, tie_margin: float = 0.0) -> PairJudgement:
    """One judgement from the probabilities, in both orders, that the item shown first is better.

    With l and l' their log-odds, the preference is sigmoid((l - l') / 2) and the position bias (l + l') / 2: a model
    that adds a constant to the first place's log-odds gets the preference it would have without it.
    """
    statuses = {as_given.status, swapped.status}
    status, preference, bias = Status.OK, math.nan, math.nan
    if statuses != {Status.OK}:
        status = Status.REJECTED if Status.REJECTED in statuses else Status.UNPARSED
    else:
        one, other = float(log_odds(as_given.probability)), float(log_odds(swapped.probability))
        preference, bias = 1.0 / (1.0 + math.exp((other - one) / 2)), (one + other) / 2
        if abs(preference - 0.5) <= tie_margin:
            preference = 0.5
    mass, cached = min(as_given.answer_mass, swapped.answer_mass), as_given.cached and swapped.cached
    return PairJudgement(status=status, preference=preference, answer_mass=mass, position_bias=bias, cached=cached)


def build_judge(config: ServiceConfig, rubric: Rubric) -> "Judge":
    """A judge with its engine loaded, theta computed, store open. ValueError for a bad configuration."""
    if config.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {config.batch_size}")
    store = open_store(config.store)
    with ExitStack() as on_failure:
        if store:
            on_failure.callback(store.close)
        engine = build_engine(config, rubric)
        on_failure.callback(engine.close)
        judge = Judge(engine, rubric, store, config)
        on_failure.pop_all()
    return judge


class Judge:
    """Judges items and pairs under one rubric, and embeds them; thread-safe. It owns engine, thread and store."""

    def __init__(self, engine: Engine, rubric: Rubric, store: JudgementStore | None, config: ServiceConfig):
        self._engine, self._rubric, self._store, self._config = engine, rubric, store, config
        self._encoder = SentenceEncoder(config)
        self._calibrated = calibrate(engine, rubric)
        self._forward_passes = 0
        self._asked_at: float | None = None  # when the engine began its present batch
        self._queue = PendingQuestions(MAX_PENDING_REQUESTS * config.max_items_per_request, has_store=store is not None)
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
        split = [self._rubric.parts(item) for item in items]
        answers = self._submit([Key(part, bypass_store) for found in split for part in found])
        return combine_parts(answers, split)

    def annotate_pairs(self, pairs: Sequence[tuple[bytes, bytes]], bypass_store: bool = False) -> list[PairJudgement]:
        """One judgement per pair, in the order asked; waits for them. Raises as `submit_pairs` and its future."""
        return self.submit_pairs(pairs, bypass_store).result()

    def submit_pairs(
        self, pairs: Sequence[tuple[bytes, bytes]], bypass_store: bool = False
    ) -> "Future[list[PairJudgement]]":
        """A future of one judgement per pair; like `submit`, each pair being asked in both orders. ValueError also
        where the rubric compares no pairs. Two items with equal texts are a tie and are not asked."""
        self._rubric.pair_question()
        self._check(len(pairs), [item for pair in pairs for item in pair])
        texts = [(self._rubric.item_text(first), self._rubric.item_text(second)) for first, second in pairs]
        asked = [pair for pair, (first, second) in zip(pairs, texts, strict=True) if first != second]
        orders = [Key(first, bypass_store, second) for pair in asked for first, second in (pair, pair[::-1])]
        assert self._rubric.pairs is not None
        tie_margin = self._rubric.pairs.tie_margin
        tie = PairJudgement(status=Status.OK, preference=0.5, answer_mass=1.0, position_bias=0.0)
        no_texts = replace(tie, status=Status.REJECTED, preference=math.nan, answer_mass=0.0, position_bias=math.nan)

        def combine(answers: list[Judgement]) -> list[PairJudgement]:
            judged = map(pair_judgement, answers[::2], answers[1::2], repeat(tie_margin))
            return [next(judged) if one != other else no_texts if one is None else tie for one, other in texts]

        return map_future(self._submit(orders), combine)

    def embed(self, items: Sequence[bytes]) -> np.ndarray:
        """[N, D] f32 of unit length, one row per item in order; waits. Raises as `submit_embedding` and its future."""
        return self.submit_embedding(items).result()

    def submit_embedding(self, items: Sequence[bytes]) -> "Future[np.ndarray]":
        """A future of [N, D] f32 of unit length, one row per item in order, NaN for an item that is no text.

        Raises ValueError where the request breaks a limit, JudgeBusyError; the future ValueError where no encoder can
        be loaded (the first request loads it), JudgeClosedError.
        """
        self._check(len(items), items)
        return self._encoder.submit([self._rubric.item_text(item) for item in items])

    def _submit(self, keys: list[Key]) -> "Future[list[Judgement]]":
        if not self._engine.judges:
            embeds = "this service was started with engine none: it embeds and does not judge"
            raise ValueError(f"{embeds}; start one with an engine")
        return self._queue.admit({key: self._question(key) for key in keys}, keys)

    def _question(self, key: Key) -> PendingQuestion | None:
        text = self._rubric.item_text(key.item)
        second = "" if key.second is None else self._rubric.item_text(key.second)
        return None if text is None or second is None else PendingQuestion(text, second)

    def describe(self) -> ServiceDescription:
        """Model, engine, rubric and limits of this judge."""
        return ServiceDescription(
            model=self._engine.model,
            engine=self._engine.name,
            fingerprint=self._engine.fingerprint,
            rubric_id=self._rubric.id,
            rubric_version=self._rubric.version,
            rubric_hash=self._rubric.content_hash,
            pairs_hash=self._rubric.pairs_hash,
            threshold=self._calibrated.threshold,
            noise=self._calibrated.noise,
            max_items_per_request=self._config.max_items_per_request,
            max_item_bytes=self._config.max_item_bytes,
            forward_passes=self._forward_passes,
            engine_busy_s=time.monotonic() - began if (began := self._asked_at) else 0.0,
        )

    def close(self) -> None:
        """Stop after the current batch (at once where the engine can); open requests fail with JudgeClosedError."""
        self._queue.close()
        self._engine.close()
        self._encoder.close()
        self._worker.join(CLOSE_TIMEOUT_S)
        if self._store:
            self._store.close()

    def check_number(self, num: int) -> None:
        """ValueError where a request of `num` items, or pairs, breaks a limit."""
        most = self._config.max_items_per_request
        if not num:
            raise ValueError("the request has no items: send at least one")
        if num > most:
            raise ValueError(f"the request has {num} items, at most {most} are taken: split it")

    def _check(self, num: int, items: Sequence[bytes]) -> None:
        """ValueError where a request of `num` items, or pairs of `items`, breaks a limit."""
        self.check_number(num)
        longest = self._config.max_item_bytes
        for position, item in enumerate(items):
            if len(item) > longest:
                raise ValueError(f"item {position} has {len(item)} bytes, at most {longest} are taken: shorten it")

    def _work(self) -> None:
        while (fresh := self._queue.take_fresh()) is not None:
            self._guarded(fresh, partial(self._look_up, fresh))
            batch = self._queue.take_batch(self._config.batch_size)
            for is_pair in (False, True):
                if same := {key: question for key, question in batch if key.is_pair == is_pair}:
                    self._guarded(list(same), partial(self._ask, same, is_pair))

    def _guarded(self, keys: Sequence[Key], work: Callable[[], None]) -> None:
        """Run `work`; where it raises, only the requests for `keys` fail."""
        try:
            if keys:
                work()
        except Exception as error:
            LOG.exception("the model failed on %d items", len(keys))
            self._queue.fail(keys, error)

    def _look_up(self, keys: Sequence[Key]) -> None:
        assert self._store is not None
        found: dict[Key, Judgement] = {}
        for is_pair in (False, True):
            if wanted := {key.stored_as: key for key in keys if key.is_pair == is_pair}:
                stored = self._store.look_up(self._engine.fingerprint, self._rubric_hash(is_pair), list(wanted))
                found |= {wanted[name]: judgement for name, judgement in stored.items()}
        self._queue.to_be_asked(key for key in keys if key not in found)
        self._queue.answer(found)

    def _rubric_hash(self, is_pair: bool) -> str:
        return self._rubric.pairs_hash if is_pair else self._rubric.content_hash

    def _ask(self, batch: Mapping[Key, PendingQuestion], is_pair: bool) -> None:
        self._asked_at = time.monotonic()
        try:
            if is_pair:
                scores = self._engine.score_pairs([(question.text, question.second) for question in batch.values()])
            else:
                scores = self._engine.score([question.text for question in batch.values()])
        finally:
            self._asked_at = None
        self._forward_passes += len(batch)
        minimum = self._rubric.pairs.min_answer_mass if is_pair and self._rubric.pairs else self._rubric.min_answer_mass
        read = (lambda score: score.probability) if is_pair else self._calibrated.probability
        answers = {key: _judgement(score, read(score), minimum) for key, score in zip(batch, scores, strict=True)}
        # Non-finite numbers, whose answer mass is 0, are not stored: the next attempt may give finite ones.
        keep = {key.stored_as: a for key, a in answers.items() if a.answer_mass > 0 and not key.bypass_store}
        if self._store and keep:
            self._store.put(self._engine.fingerprint, self._rubric_hash(is_pair), keep)
        self._queue.answer(answers)


def _judgement(score: Score, probability: float, min_answer_mass: float) -> Judgement:
    mass = score.answer_mass if math.isfinite(score.answer_mass) else 0.0
    if mass < min_answer_mass or not math.isfinite(probability):
        return Judgement(status=Status.UNPARSED, probability=math.nan, answer_mass=mass)
    return Judgement(status=Status.OK, probability=probability, answer_mass=mass)
