"""`GoalModel`: which goals an item achieves, by `goals.achieved_by`.

    both        the rubric calls the item an accomplishment, and the goal is its nearest, above `goals.similarity`, or
                within TIE of the nearest: the encoder cannot tell "open the door" and "unlock the door" apart
    similarity  the latter alone
    judged      the rubric says so about the item and the goal, one of the four nearest

A small judge tells whether something was accomplished and not what; sentence vectors tell what and not whether ("This
door is locked." is near to "open the door"). So `both` is the default.

Invariant: what is kept of an item is what its answer said, and its nearest goals, by vectors in f16; no item outside
the caption book is kept. With a new goal the masks of all items follow, without a further question but for `judged`,
where an item that has it among its nearest is asked about again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from configs.annotation_schema import RewardModelConfig
from configs.goal_schema import GOAL_TERM, MAX_GOALS, GoalsConfig
from configs.reward_schema import RobustConfig
from llm_server.annotation import Caption, MatchedCaption, Status, log_odds
from llm_server.annotator.caption_texts import ids_of
from llm_server.annotator.id_rows import IdRows, grown
from reward_models.goals.book import NONE, GoalBook
from reward_models.goals.masks import masks_of
from reward_models.interface import UNGUARDED, Asks, Evidence, RewardModel, without_empty
from reward_models.retrieval import ProbabilityReward

NUM_NEAREST = 4
"""Nearest goals that are kept of an item, and about which `judged` asks."""
TIE = 0.03
"""Cosines that differ by no more are alike. Of ten goals and twenty captions none gets a wrong goal up to 0.1."""
SLICE = 65_536
"""Items that are compared with goals at a time."""
UNLIKE = np.float32(-2.0)
"""Below any cosine."""


class GoalModel(RewardModel):
    """R = 1 for an item that achieves any goal of the `book`, else 0; `goals` says which."""

    name = GOAL_TERM
    asks = Asks.GOALS

    def __init__(
        self,
        config: RewardModelConfig,
        seed: int = 0,
        robust: RobustConfig = UNGUARDED,
        *,
        goals: GoalsConfig | None = None,
        book: GoalBook | None = None,
    ) -> None:
        super().__init__(config, seed, robust)
        goals = goals or GoalsConfig()
        self.on_accomplished: Callable[[Sequence[str]], object] = lambda texts: None
        """Called with the texts of new items that are accomplishments, if any."""
        self.on_unsettled: Callable[[Iterable[int]], object] = lambda ids: None
        """Called with the items that are to be asked about again."""
        self._rule, self._similarity = goals.achieved_by, goals.similarity
        self._book = GoalBook(goals.merge_similarity) if book is None else book
        self._threshold = ProbabilityReward(config)
        self._revision: int | None = None  # of the book, when items were matched last
        self._matched = np.zeros(MAX_GOALS, bool)  # goals with which all items were compared
        self._rows = IdRows()
        self._columns = _empty_columns(0)

    def calibrate(self, threshold: float) -> None:
        """Answers are stored as probabilities, so a new threshold applies to all of them."""
        self._threshold.calibrate(threshold)

    def learn(self, evidence: Sequence[Evidence]) -> None:
        """Remember the answers, all at once."""
        items = {
            item.caption.id: item
            for item in evidence
            if isinstance(item, MatchedCaption) and item.judgement.status is Status.OK and item.caption.id
        }
        if self._is_frozen or not items:
            return
        ids = np.fromiter(items, np.uint64)
        rows = self._rows.find(ids)
        was_one = np.zeros(len(rows), bool)
        was_one[rows >= 0] = self._accomplished(rows[rows >= 0])
        rows[rows < 0] = self._rows.add(ids[rows < 0])
        self._note(rows, [*items.values()])
        self._compare(rows, np.flatnonzero(self._matched), anew=True)
        self._report_unsettled(rows)
        is_one = self._accomplished(rows) & ~was_one
        self.on_accomplished([items[int(number)].caption.text for number in ids[is_one]])

    def _accomplished(self, rows: np.ndarray) -> np.ndarray:
        """[M] bool: which of `rows` [M] the rubric calls an accomplishment, alone or about a goal; by similarity alone,
        where nothing is judged, all."""
        if self._rule == "similarity":
            return np.ones(len(rows), bool)
        columns = self._columns
        p = np.fmax(columns["probability"][rows], np.fmax.reduce(columns["achieves"][rows], axis=1))
        return np.asarray(p > self._threshold.threshold)

    def _note(self, rows: np.ndarray, items: Sequence[MatchedCaption]) -> None:
        """Write what was answered about `items` into their rows."""
        num, size = len(self._rows), len(items[0].vector)
        if not self._columns["vector"].shape[1]:
            self._columns |= _empty_columns(size)
        self._columns = {name: grown(column, num) for name, column in self._columns.items()}
        self._columns["vector"][rows] = [item.vector for item in items]
        self._columns["probability"][rows] = [item.judgement.probability for item in items]
        self._columns["num_goals"][rows] = [item.num_goals for item in items]
        about = np.full((len(items), NUM_NEAREST), NONE, np.int16)
        achieves = np.full((len(items), NUM_NEAREST), np.nan)
        for place, item in enumerate(items):
            num_judged = len(item.achieves)
            about[place, :num_judged], achieves[place, :num_judged] = [*item.achieves], [*item.achieves.values()]
        self._columns["about"][rows], self._columns["achieves"][rows] = about, achieves

    @property
    def is_outdated(self) -> bool:
        """Whether the goals have changed since the last `score`."""
        return self._book.revision != self._revision

    def _match(self) -> None:
        """Compare all items with what is new in the book."""
        if not self.is_outdated:
            return
        revision, is_active = self._book.revision, self._book.active()
        every = np.arange(len(self._rows))
        if (self._matched & ~is_active).any():  # the nearest of some is gone
            self._compare(every, np.flatnonzero(is_active), anew=True)
        else:
            self._compare(every, np.flatnonzero(is_active & ~self._matched), anew=False)
        self._revision, self._matched = revision, is_active
        self._report_unsettled(every)

    def _compare(self, rows: np.ndarray, goals: np.ndarray, *, anew: bool) -> None:
        """Bring the nearest goals of `rows` [M] up to date with `goals` [K]; `anew`: with these alone."""
        if anew:
            self._columns["cosine"][rows], self._columns["nearest"][rows] = UNLIKE, NONE
        if not len(goals) or not len(rows):
            return
        vectors = self._book.vectors[goals].T
        for some in np.array_split(rows, -(-len(rows) // SLICE)):
            cosines = np.hstack([self._columns["cosine"][some], self._columns["vector"][some].astype("f4") @ vectors])
            nearest = np.hstack([self._columns["nearest"][some], np.tile(goals.astype(np.int16), (len(some), 1))])
            best = np.argsort(-cosines, axis=1, kind="stable")[:, :NUM_NEAREST]
            self._columns["cosine"][some] = np.take_along_axis(cosines, best, 1)
            self._columns["nearest"][some] = np.take_along_axis(nearest, best, 1)

    def _report_unsettled(self, rows: np.ndarray) -> None:
        """Have the items of `rows` asked about again that have a goal among their nearest which was not known then."""
        if self._rule == "judged" and not self._is_frozen:
            is_new = (self._columns["nearest"][rows] >= self._columns["num_goals"][rows, None]).any(1)
            if is_new.any():
                self.on_unsettled(self._rows.ids[rows[is_new]].tolist())

    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """[N] f32: 1 for what achieves a goal; NaN without an answer or, unless by similarity alone, a threshold."""
        self._match()
        rows = self._rows.find(ids_of(captions))
        is_known = (rows >= 0) & (self._rule == "similarity" or not np.isnan(self._threshold.threshold))
        return without_empty(captions, np.where(is_known, self._masks(rows).any(1), np.nan))

    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64: log-odds minus those of the threshold, or cosine minus `goals.similarity` where that is less, as far
        as the rule asks for them; above 0 where a goal is achieved."""
        self._match()
        rows = self._rows.find(ids_of(captions))
        is_known, rows = rows >= 0, np.maximum(rows, 0)
        if not len(self._rows):
            return np.full(len(rows), np.nan)
        likeness = self._columns["cosine"][rows, 0] - self._similarity
        p = self._columns["probability"][rows]
        if self._rule == "judged":
            p, likeness = np.fmax.reduce(self._columns["achieves"][rows], axis=1), np.full(len(rows), np.inf)
        accomplished = log_odds(p) - log_odds(self._threshold.threshold)
        margins = likeness if self._rule == "similarity" else np.minimum(accomplished, likeness)
        return np.where(is_known, margins, np.nan).astype(np.float64)

    def goals(self, captions: Sequence[Caption]) -> np.ndarray | None:
        """[N, 4] u64: the mask of the goals that each item achieves, by the goals of the last `score`."""
        return self._masks(self._rows.find(ids_of(captions)))

    def _masks(self, rows: np.ndarray) -> np.ndarray:
        """[M, 4] u64 of `rows` [M], -1 for an unknown item."""
        if not len(self._rows):
            return masks_of(np.full(len(rows), NONE))
        # Not row -1: columns are longer than there are rows, and what was not written in them is anything.
        is_known, rows = rows >= 0, np.maximum(rows, 0)
        columns, threshold = self._columns, self._threshold.threshold
        if self._rule == "judged":
            achieved = np.where(columns["achieves"][rows] > threshold, columns["about"][rows], NONE)
            masks = np.bitwise_or.reduce(masks_of(achieved), axis=1)
            masks &= np.bitwise_or.reduce(masks_of(np.flatnonzero(self._matched)), axis=0)
        else:
            cosines = columns["cosine"][rows]
            is_achieved = (cosines > self._similarity) & (cosines >= cosines[:, :1] - TIE)
            if self._rule == "both":
                is_achieved &= columns["probability"][rows, None] > threshold
            masks = np.bitwise_or.reduce(masks_of(np.where(is_achieved, columns["nearest"][rows], NONE)), axis=1)
        masks[~is_known] = 0
        return masks

    def retain(self, ids: Set[int]) -> None:
        """Forget every other item; a frozen model keeps all, because it would not get them again."""
        if not self._is_frozen:
            staying = np.flatnonzero(np.fromiter((number in ids for number in self._rows.ids.tolist()), np.bool_))
            self._columns = {name: column[staying] for name, column in self._columns.items()}
            self._rows.replace(self._rows.ids[staying])

    def state_dict(self) -> dict[str, Any]:
        """All answers, the nearest goals, and the threshold, so that a resumed run has its masks before the service
        answers."""
        num = len(self._rows)
        return {
            "threshold": self._threshold.threshold,
            "ids": self._rows.ids.copy(),
            **{name: column[:num].copy() for name, column in self._columns.items()},
            "matched": self._matched.copy(),
            "is_frozen": self._is_frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; a configured threshold overrides the saved one."""
        self.calibrate(state["threshold"])
        self._rows.replace(state["ids"])
        self._columns = {name: np.array(state[name]) for name in self._columns}
        self._revision, self._matched = None, np.array(state["matched"])
        self._is_frozen = state["is_frozen"]


def _empty_columns(size: int) -> dict[str, np.ndarray]:
    """What is known of no item, with vectors of `size` numbers."""
    return {
        "vector": np.empty((0, size), np.float16),
        "probability": np.empty(0),  # NaN: not judged on its own
        "num_goals": np.empty(0, np.int32),  # when it was asked about
        "about": np.empty((0, NUM_NEAREST), np.int16),  # goals that it was judged about
        "achieves": np.empty((0, NUM_NEAREST)),  # the probability that it achieves each
        "cosine": np.empty((0, NUM_NEAREST), np.float32),  # with its nearest goals, the nearest first
        "nearest": np.empty((0, NUM_NEAREST), np.int16),
    }
