"""What the annotator asks, and how: judgements of single captions, or embeddings of captions and goal sentences.

Invariant: an item is handed out again only after it was put back; a recorded item is never asked again.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from llm_server.annotation import (
    Caption,
    CaptionPair,
    EmbeddedCaption,
    JudgedCaption,
    JudgedPair,
    Judgement,
    MatchedCaption,
    PairJudgement,
    ServiceDescription,
    Status,
)
from llm_server.annotator.caption_book import CaptionBook
from llm_server.writing.brief import WriterClient

EMBEDDED = Judgement(status=Status.OK, probability=np.nan, answer_mass=np.nan)
"""Of an item that has a vector and no probability."""
REJECTED = Judgement(status=Status.REJECTED, probability=np.nan, answer_mass=np.nan)
Item: TypeAlias = Caption | CaptionPair
Answer: TypeAlias = JudgedCaption | JudgedPair | EmbeddedCaption | MatchedCaption


class JudgeClient(WriterClient, Protocol):
    """The methods of `llm_server.client.AnnotationClient` that the annotator uses."""

    def annotate(self, items: Sequence[bytes], *, abouts: Sequence[bytes] = ()) -> list[Judgement]:
        """One judgement per item, in order, about one of `abouts` each if any; raises ServiceUnavailable or
        AnnotationRefused."""

    def annotate_pairs(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[PairJudgement]:
        """One judgement per pair, in order; the same errors."""

    def embed(self, items: Sequence[bytes]) -> np.ndarray:
        """[N, D] f32 of unit length, in order, NaN for an item that is no text; the same errors."""

    def describe(self) -> ServiceDescription:
        """The service's description of itself; the same errors."""

    def take_rejected(self) -> int:
        """Items whose answers broke the contract, and were discarded, since the last call."""

    def close(self) -> None:
        """Release the connection; requests under way fail."""


class CaptionQuestions:
    """Every caption of the book is judged on its own, and the book keeps all state; subclasses ask otherwise. Used by
    several threads at once."""

    def __init__(self, book: CaptionBook) -> None:
        self._book = book

    def next_batch(self, max_items: int) -> Sequence[Any]:
        """The items of highest priority, at most `max_items`; they count as asked from now on."""
        return self._book.next_batch(max_items)

    def put_back(self, items: Sequence[Any]) -> None:
        """Make items whose request failed pending again."""
        self._book.put_back(items)

    def ask(self, client: JudgeClient, items: Sequence[Any]) -> list[Any]:
        """One answer per item, in order; raises what the client raises."""
        judgements = client.annotate([caption.text.encode() for caption in items])
        check_number(len(judgements), len(items))
        pairs = zip(items, judgements, strict=True)
        return [JudgedCaption(caption=caption, judgement=judgement) for caption, judgement in pairs]

    def record(self, answers: Sequence[Any]) -> list[Answer]:
        """Record answers; returns what a reward model may learn from: labels of captions still in the book."""
        return [item for item in self._book.record(answers) if item.judgement.status is Status.OK]

    def forget_answers(self) -> None:
        """Forget all answers and ask again, because another judge answers."""
        self._book.forget_answers()

    def pending(self) -> int | None:
        """Number of items that wait to be asked; None where the caption book's metrics hold it."""
        return None

    def retain(self, ids: Set[int]) -> None:
        """Forget captions other than these: the caption book has evicted the rest."""

    def state_dict(self) -> dict[str, Any]:
        """What the caption book does not keep; items that are being asked count as not asked."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""


class EmbeddingQuestions(CaptionQuestions):
    """Every caption of the book is embedded and compared with `goals`."""

    def __init__(self, book: CaptionBook, goals: Sequence[str]) -> None:
        super().__init__(book)
        self._goals = [goal.encode() for goal in goals]
        # The goals' vectors [G, D], by the client that embedded them.
        self._embedded: WeakKeyDictionary[JudgeClient, np.ndarray] = WeakKeyDictionary()

    def ask(self, client: JudgeClient, items: Sequence[Caption]) -> list[Any]:
        """`Embed`: cosines of each caption with each goal."""
        goals = self._embedded.get(client)
        if goals is None:
            goals = client.embed(self._goals)
            check_number(len(goals), len(self._goals))
            self._embedded[client] = goals
        vectors = client.embed([caption.text.encode() for caption in items])
        check_number(len(vectors), len(items))
        cosines = (vectors @ goals.T).astype(np.float32)
        return [EmbeddedCaption(caption=caption, cosines=row) for caption, row in zip(items, cosines, strict=True)]

    def record(self, answers: Sequence[Any]) -> list[Answer]:
        """The answers with an embedding, of captions still in the book."""
        by_id = {answer.caption.id: answer for answer in answers}
        judged = [JudgedCaption(caption=answer.caption, judgement=_embedding_judged(answer)) for answer in answers]
        return [by_id[item.caption.id] for item in self._book.record(judged) if item.judgement.status is Status.OK]


def question_of(answer: Answer) -> Item:
    """The item that was asked."""
    return answer.pair if isinstance(answer, JudgedPair) else answer.caption


def judgement_of(answer: Answer) -> Judgement | PairJudgement:
    """An answer's judgement; that of an embedding has no probability."""
    if isinstance(answer, MatchedCaption) and np.isnan(answer.vector).any():
        return REJECTED
    return _embedding_judged(answer) if isinstance(answer, EmbeddedCaption) else answer.judgement


def passes_of(answer: Answer) -> int:
    """Forward passes of an answer: 2 for a pair, which is asked in both orders; 0 for a cached or rejected item."""
    if isinstance(answer, MatchedCaption):
        return answer.num_judged
    judgement = judgement_of(answer)
    return 0 if judgement.cached or judgement.status is Status.REJECTED else 2 if isinstance(answer, JudgedPair) else 1


def check_number(got: int, wanted: int) -> None:
    """RuntimeError unless there is one answer per item."""
    if got != wanted:
        raise RuntimeError(f"the service gave {got} answers for {wanted} items; it must give one each")


def _embedding_judged(answer: EmbeddedCaption) -> Judgement:
    return REJECTED if np.isnan(answer.cosines).any() else EMBEDDED
