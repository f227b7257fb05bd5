"""`GoalQuestions`: what is asked of a caption so that it can be matched with goals: its sentence vector, and whether it
is an accomplishment or which of its nearest goals it achieves.

Invariant: as that of `CaptionQuestions`; but a caption may be asked about again, when new goals are among its nearest.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from llm_server.annotation import Caption, JudgedCaption, Judgement, MatchedCaption, Status
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.feedback import EMBEDDED, Answer, CaptionQuestions, JudgeClient, check_number, judgement_of

Nearest: TypeAlias = Callable[[np.ndarray], tuple[int, Sequence[Mapping[int, str]]]]
"""From vectors [N, D] f32 to the number of goals, and the nearest of each, index -> text; thread-safe."""


class GoalQuestions(CaptionQuestions):
    """Every caption of the book is embedded and, by `achieved_by`, judged on its own (`both`), about each of its
    `nearest` goals (`judged`) or not at all (`similarity`)."""

    def __init__(self, book: CaptionBook, achieved_by: str, nearest: Nearest) -> None:
        super().__init__(book)
        self._achieved_by, self._nearest = achieved_by, nearest
        self._again: dict[int, None] = {}  # captions to be asked about again, in order
        self._asked_again: set[int] = set()
        self._lock = threading.Lock()  # of these two

    def ask_again(self, ids: Iterable[int]) -> None:
        """Ask once more about these captions, after those that were never asked about."""
        with self._lock:
            self._again |= dict.fromkeys(number for number in ids if number not in self._asked_again)

    def next_batch(self, max_items: int) -> list[Caption]:
        """Captions that were never asked about, then those that are asked about again."""
        batch = self._book.next_batch(max_items)
        with self._lock:
            again = [*islice(self._again, max(0, max_items - len(batch)))]
            for number in again:
                del self._again[number]
            known = self._book.captions_of(again) if again else {}
            self._asked_again |= known.keys()
        return batch + [known[number] for number in again if number in known]

    def put_back(self, items: Sequence[Caption]) -> None:
        """Make captions whose request failed pending again."""
        self._book.put_back(items)
        with self._lock:
            failed = {item.id: None for item in items if item.id in self._asked_again}
            self._asked_again -= failed.keys()
            self._again = failed | self._again

    def ask(self, client: JudgeClient, items: Sequence[Caption]) -> list[Any]:
        """`Embed`, and `Annotate` of the captions, or of each with its nearest goals."""
        texts = [caption.text.encode() for caption in items]
        vectors = client.embed(texts)
        check_number(len(vectors), len(items))
        if self._achieved_by == "judged":
            return self._judged(client, items, texts, vectors)
        judgements = [EMBEDDED] * len(items)
        if self._achieved_by == "both":
            judgements = client.annotate(texts)
            check_number(len(judgements), len(items))
        return [
            MatchedCaption(caption=caption, judgement=judgement, vector=vector, num_judged=int(_is_made(judgement)))
            for caption, judgement, vector in zip(items, judgements, vectors, strict=True)
        ]

    def _judged(
        self, client: JudgeClient, items: Sequence[Caption], texts: Sequence[bytes], vectors: np.ndarray
    ) -> list[Any]:
        num_goals, nearest = self._nearest(vectors)
        judged: list[dict[int, Judgement]] = [{} for _ in items]
        for place in range(max(map(len, nearest), default=0)):  # so no request is larger than one of captions
            rows = [row for row, goals in enumerate(nearest) if len(goals) > place]
            chosen = [list(nearest[row].items())[place] for row in rows]
            answers = client.annotate([texts[row] for row in rows], abouts=[text.encode() for _, text in chosen])
            check_number(len(answers), len(rows))
            for row, (goal, _), answer in zip(rows, chosen, answers, strict=True):
                judged[row][goal] = answer
        return [
            MatchedCaption(
                caption=caption,
                judgement=replace(EMBEDDED, cached=bool(answers) and not any(map(_is_made, answers.values()))),
                vector=vector,
                achieves={goal: answer.probability for goal, answer in answers.items()},
                num_goals=num_goals,
                num_judged=sum(map(_is_made, answers.values())),
            )
            for caption, answers, vector in zip(items, judged, vectors, strict=True)
        ]

    def record(self, answers: Sequence[MatchedCaption]) -> list[Answer]:
        """The usable answers of captions still in the book."""
        with self._lock:
            self._asked_again -= {answer.caption.id for answer in answers}
        by_id = {answer.caption.id: answer for answer in answers}
        judged = [JudgedCaption(caption=answer.caption, judgement=_judgement(answer)) for answer in answers]
        return [by_id[item.caption.id] for item in self._book.record(judged) if item.judgement.status is Status.OK]

    def forget_answers(self) -> None:
        """Ask about all captions anew."""
        super().forget_answers()
        with self._lock:
            self._again.clear()

    def retain(self, ids: Set[int]) -> None:
        """Forget captions other than these."""
        with self._lock:
            self._again = {number: None for number in self._again if number in ids}

    def state_dict(self) -> dict[str, Any]:
        """What is to be asked about again."""
        with self._lock:
            return {"again": np.array([*self._asked_again, *self._again], np.uint64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.ask_again(np.asarray(state["again"]).tolist())


def _is_made(judgement: Judgement) -> bool:
    return not judgement.cached and judgement.status is not Status.REJECTED


def _judgement(answer: MatchedCaption) -> Judgement:
    judgement = judgement_of(answer)
    assert isinstance(judgement, Judgement)
    return judgement
