"""`Judge`: the annotation service without its network. Items in, judgements out.

Invariant: the model answers an item once for all concurrent requests, and not at all where the store holds the answer;
the worker thread, which does all slow work, survives every failure. A pair is asked in both orders, so that the model's
position bias cancels and is measured. All rubrics share one loaded model, one thread and one queue.

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
from llm_server.annotation import Judgement, PairJudgement, ServiceDescription, Status
from llm_server.engines.building import build_engine
from llm_server.engines.engine import Engine
from llm_server.engines.sentence_encoder import SentenceEncoder
from llm_server.rubrics.loading import distinct_rubrics
from llm_server.rubrics.rubric import Rubric
from llm_server.service.asking import Asking
from llm_server.service.combining import combine_parts, pair_judgement
from llm_server.service.pending import Key, PendingQuestion, PendingQuestions, map_future
from llm_server.service.store import JudgementStore, open_store
from llm_server.writing.desk import WritingDesk

LOG = logging.getLogger(__name__)
MAX_PENDING_REQUESTS = 8
"""Items of this many of the largest requests may wait; more are refused."""
CLOSE_TIMEOUT_S = 5.0


def build_judge(config: ServiceConfig, rubrics: Sequence[Rubric]) -> "Judge":
    """A judge with its engine loaded, theta computed for every rubric, store open. ValueError for a bad configuration,
    and for two different rubrics with one id and version; equal ones count once."""
    if config.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {config.batch_size}")
    first, *_ = rubrics = distinct_rubrics(rubrics)
    store = open_store(config.store)
    with ExitStack() as on_failure:
        if store:
            on_failure.callback(store.close)
        engine = build_engine(config, first)
        on_failure.callback(engine.close)
        judge = Judge(engine, rubrics, store, config)
        on_failure.pop_all()
    return judge


class Judge:
    """Judges items and pairs under one or several rubrics, embeds them, and writes by briefs; thread-safe. It owns
    engine, threads and store.

    The engine is that of the first rubric; the others' come from it. Methods that take a `rubric` use the first where
    none is given, and raise ValueError for one that is not served.
    """

    def __init__(
        self, engine: Engine, rubrics: Sequence[Rubric], store: JudgementStore | None, config: ServiceConfig
    ) -> None:
        self._store, self._config = store, config
        first, *others = rubrics
        self._askings = [Asking(engine, first), *(_asking_too(engine, rubric) for rubric in others)]
        self._numbers = {_identity(asking.rubric): number for number, asking in enumerate(self._askings)}
        self._encoder = SentenceEncoder(config)
        self.desk = WritingDesk(engine, first, store, config.max_item_bytes)
        """Where the same model writes."""
        self._forward_passes = 0
        self._asked_at: float | None = None  # when the engine began its present batch
        self._queue = PendingQuestions(MAX_PENDING_REQUESTS * config.max_items_per_request, has_store=store is not None)
        self._worker = threading.Thread(target=self._work, name="judge", daemon=True)
        self._worker.start()

    @property
    def rubrics(self) -> list[Rubric]:
        """What it judges by, in the order given."""
        return [asking.rubric for asking in self._askings]

    def annotate(
        self,
        items: Sequence[bytes],
        bypass_store: bool = False,
        *,
        rubric: Rubric | None = None,
        abouts: Sequence[bytes] = (),
    ) -> list[Judgement]:
        """One judgement per item, in the order asked; waits for them. Raises what `submit` and its future raise."""
        return self.submit(items, bypass_store, rubric=rubric, abouts=abouts).result()

    def submit(
        self,
        items: Sequence[bytes],
        bypass_store: bool = False,
        *,
        rubric: Rubric | None = None,
        abouts: Sequence[bytes] = (),
    ) -> "Future[list[Judgement]]":
        """A future of one judgement per item, in the order asked; never waits. Cancelling it withdraws the request.

        `abouts` is what each item is judged about, for a rubric with an `about_label`. With `bypass_store` the store is
        neither read nor written. Raises ValueError where the request breaks a limit, or does not fit the rubric,
        JudgeBusyError, JudgeClosedError; the future raises JudgeClosedError or JudgeFailedError.
        """
        number = self._number(rubric)
        asked_by = self._askings[number].rubric
        self._check(len(items), items)
        asked_by.check_about(bool(abouts))
        if abouts:
            if len(abouts) != len(items):
                raise ValueError(f"the request has {len(abouts)} abouts for {len(items)} items, wanted one per item")
            self._check(len(abouts), abouts, "about")
        split = [asked_by.parts(item) for item in items]
        keys = [
            Key(part, bypass_store, about=about, rubric=number)
            for found, about in zip(split, abouts or repeat(b""), strict=False)
            for part in found
        ]
        return combine_parts(self._submit(keys), split)

    def annotate_pairs(
        self, pairs: Sequence[tuple[bytes, bytes]], bypass_store: bool = False, *, rubric: Rubric | None = None
    ) -> list[PairJudgement]:
        """One judgement per pair, in the order asked; waits for them. Raises as `submit_pairs` and its future."""
        return self.submit_pairs(pairs, bypass_store, rubric=rubric).result()

    def submit_pairs(
        self, pairs: Sequence[tuple[bytes, bytes]], bypass_store: bool = False, *, rubric: Rubric | None = None
    ) -> "Future[list[PairJudgement]]":
        """A future of one judgement per pair; like `submit`, each pair being asked in both orders. ValueError also
        where the rubric compares no pairs. Two items with equal texts are a tie and are not asked."""
        number = self._number(rubric)
        asked_by = self._askings[number].rubric
        asked_by.pair_question()
        self._check(len(pairs), [item for pair in pairs for item in pair])
        texts = [(asked_by.item_text(first), asked_by.item_text(second)) for first, second in pairs]
        asked = [pair for pair, (first, second) in zip(pairs, texts, strict=True) if first != second]
        orders = [
            Key(first, bypass_store, second, rubric=number) for pair in asked for first, second in (pair, pair[::-1])
        ]
        assert asked_by.pairs is not None
        tie_margin = asked_by.pairs.tie_margin
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
        as_line = self._askings[0].rubric.item_text
        return self._encoder.submit([as_line(item) for item in items])

    def _submit(self, keys: list[Key]) -> "Future[list[Judgement]]":
        if not self._askings[0].engine.judges:
            embeds = "this service was started with engine none: it embeds and does not judge"
            raise ValueError(f"{embeds}; start one with an engine")
        return self._queue.admit({key: self._askings[key.rubric].question(key) for key in keys}, keys)

    def _number(self, rubric: Rubric | None) -> int:
        """The number of a rubric in this judge; ValueError for another one."""
        if rubric is None:
            return 0
        number = self._numbers.get(_identity(rubric))
        if number is None:
            names = ", ".join(f"{each.id!r} version {each.version!r}" for each in self.rubrics)
            raise ValueError(f"got rubric {rubric.id!r}, this judge was made with {names}: make it with that one too")
        return number

    def describe(self, rubric: Rubric | None = None) -> ServiceDescription:
        """Model, engine, rubric and limits of this judge."""
        asking = self._askings[self._number(rubric)]
        return ServiceDescription(
            model=asking.engine.model,
            engine=asking.engine.name,
            fingerprint=asking.engine.fingerprint,
            rubric_id=asking.rubric.id,
            rubric_version=asking.rubric.version,
            rubric_hash=asking.rubric.content_hash,
            pairs_hash=asking.rubric.pairs_hash,
            threshold=asking.calibrated.threshold,
            noise=asking.calibrated.noise,
            max_items_per_request=self._config.max_items_per_request,
            max_item_bytes=self._config.max_item_bytes,
            forward_passes=self._forward_passes,
            engine_busy_s=time.monotonic() - began if (began := self._asked_at) else 0.0,
            writes=self.desk.writes,
        )

    def close(self) -> None:
        """Stop after the current batch (at once where the engine can); open requests fail with JudgeClosedError."""
        self._queue.close()
        for asking in self._askings:
            asking.engine.close()
        self._encoder.close()
        self.desk.close()
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

    def _check(self, num: int, items: Sequence[bytes], what: str = "item") -> None:
        """ValueError where a request of `num` items, or pairs of `items`, breaks a limit."""
        self.check_number(num)
        longest = self._config.max_item_bytes
        for position, item in enumerate(items):
            if len(item) > longest:
                raise ValueError(f"{what} {position} has {len(item)} bytes, at most {longest} are taken: shorten it")

    def _work(self) -> None:
        while (fresh := self._queue.take_fresh()) is not None:
            self._guarded(fresh, partial(self._look_up, fresh))
            batch = dict(self._queue.take_batch(self._config.batch_size))
            self._guarded(list(batch), partial(self._ask, batch))

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
        for rubric, is_pair in dict.fromkeys(key.form for key in keys):
            wanted = {key.stored_as: key for key in keys if key.form == (rubric, is_pair)}
            judge = self._askings[rubric].stored_under(is_pair=is_pair)
            found |= {wanted[name]: answer for name, answer in self._store.look_up(*judge, list(wanted)).items()}
        self._queue.to_be_asked(key for key in keys if key not in found)
        self._queue.answer(found)

    def _ask(self, batch: Mapping[Key, PendingQuestion]) -> None:
        """Ask and answer a batch of one form."""
        rubric, is_pair = next(iter(batch)).form
        asking = self._askings[rubric]
        self._asked_at = time.monotonic()
        try:
            answers = asking.ask(batch, is_pair=is_pair)
        finally:
            self._asked_at = None
        self._forward_passes += len(batch)
        # Non-finite numbers, whose answer mass is 0, are not stored: the next attempt may give finite ones.
        keep = {key.stored_as: a for key, a in answers.items() if a.answer_mass > 0 and not key.bypass_store}
        if self._store and keep:
            self._store.put(*asking.stored_under(is_pair=is_pair), keep)
        self._queue.answer(answers)


def _asking_too(engine: Engine, rubric: Rubric) -> Asking:
    try:
        return Asking(engine.under(rubric), rubric)
    except ValueError as error:
        raise ValueError(f"rubric '{rubric.id}': {error}") from None


def _identity(rubric: Rubric) -> tuple[str, str]:
    return rubric.content_hash, rubric.pairs_hash
