"""Pairs of captions: how they are drawn, and how the preference between the two is obtained.

Invariant: no caption is paired with itself or the empty caption, and none of the last `max_pairs` pairs is drawn again,
in either order; on average at most `pairs_per_caption` pairs are made per caption of the book.
"""

import math
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from configs.annotation_schema import AnnotatorConfig
from llm_server.annotation import Caption, CaptionPair, JudgedCaption, JudgedPair, PairJudgement, Status, log_odds
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.feedback import Answer, CaptionQuestions, JudgeClient, check_number

ROUNDS = 6
"""Attempts to draw new pairs, each with weights flattened by one more square root."""


class PairSampler:
    """Draws new pairs of caption ids; a function of seed and calls. Not thread-safe.

    A caption's weight is the square root of its priority under `annotator.policy` (with `frequency`: of its count), so
    that frequent captions are compared more often, but rare ones too.
    """

    def __init__(self, config: AnnotatorConfig, seed: int) -> None:
        self._max_pairs, self._seed = config.max_pairs, seed
        self._taken: dict[tuple[int, int], None] = {}  # in the order of drawing
        self._num_draws = 0

    def __len__(self) -> int:
        """Pairs remembered."""
        return len(self._taken)

    def draw(
        self, firsts: np.ndarray, first_log2: np.ndarray | None, others: np.ndarray, log2: np.ndarray, num: int
    ) -> list[tuple[int, int]]:
        """At most `num` new pairs: `firsts` [N] u64 with `others` [M] u64, the latter drawn by priorities 2^log2 [M].

        With `first_log2` [N] the first is drawn likewise; without, each of `firsts` is used in turn.
        """
        pairs: list[tuple[int, int]] = []
        for flattening in range(1, ROUNDS + 1):
            missing = num - len(pairs)
            if missing <= 0 or not len(firsts) or not len(others):
                break
            rng = np.random.default_rng((self._seed, self._num_draws))
            self._num_draws += 1
            if first_log2 is None:
                rows = np.arange(missing) % len(firsts)
            else:
                rows = rng.choice(len(firsts), size=2 * missing, p=_weights(first_log2, flattening))
            partners = others[rng.choice(len(others), size=len(rows), p=_weights(log2, flattening))]
            swapped = rng.random(len(rows)) < 0.5
            for first, second, swap in zip(firsts[rows].tolist(), partners.tolist(), swapped.tolist(), strict=True):
                if len(pairs) < num and self._is_new(first, second):
                    pairs.append((second, first) if swap else (first, second))
        while len(self._taken) > self._max_pairs:
            del self._taken[next(iter(self._taken))]
        return pairs

    def _is_new(self, first: int, second: int) -> bool:
        key = _key(first, second)
        if not first or not second or first == second or key in self._taken:
            return False
        self._taken[key] = None
        return True

    def retain(self, ids: Set[int]) -> None:
        """Forget pairs with any other caption."""
        self._taken = dict.fromkeys(key for key in self._taken if key[0] in ids and key[1] in ids)

    def forget(self, without: Set[tuple[int, int]] = frozenset()) -> None:
        """Forget all pairs but these."""
        self._taken = dict.fromkeys(key for key in self._taken if key in without)

    def state_dict(self, without: Set[tuple[int, int]] = frozenset()) -> dict[str, Any]:
        """Pairs drawn, less those that are being asked."""
        taken = [key for key in self._taken if key not in without]
        return {"pairs": np.array(taken, np.uint64).reshape(-1, 2), "num_draws": self._num_draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._taken = dict.fromkeys((first, second) for first, second in state["pairs"].tolist())
        self._num_draws = state["num_draws"]


class ComparedPairs(CaptionQuestions):
    """The LLM compares both captions of a pair."""

    def __init__(self, book: CaptionBook, config: AnnotatorConfig, seed: int) -> None:
        super().__init__(book)
        self._config, self._sampler = config, PairSampler(config, seed)
        self._lock = threading.Lock()
        self._returned: deque[CaptionPair] = deque()
        self._asked: set[tuple[int, int]] = set()  # those that were returned included
        # Pairs by caption id; kept longer than the sampler's pairs, until the caption is evicted.
        self._num_pairs: Counter[int] = Counter()

    def next_batch(self, max_items: int) -> Sequence[CaptionPair]:
        """Pairs whose request failed, then new ones."""
        with self._lock:
            batch = [self._returned.popleft() for _ in range(min(max_items, len(self._returned)))]
            wanted = min(max_items - len(batch), self._num_wanted())
            if wanted > 0:
                ids, _, log2 = self._book.ranked()
                drawn = self._sampler.draw(ids, log2, ids, log2, wanted)
                self._num_pairs.update(number for pair in drawn for number in pair)
                batch += _pairs_of(drawn, self._book.captions_of({number for pair in drawn for number in pair}))
            self._asked |= _keys(batch)
            return batch

    def _num_wanted(self) -> int:
        num_captions = len(self._book)
        existing = num_captions * (num_captions - 1) // 2
        # A pair counts for both of its captions.
        per_caption = self._config.pairs_per_caption * num_captions - self._num_pairs.total() // 2
        return max(0, min(per_caption, existing - len(self._sampler)))

    def put_back(self, items: Sequence[CaptionPair]) -> None:
        """Keep pairs whose request failed, to be asked before any new pair."""
        with self._lock:
            self._returned.extend(items)

    def ask(self, client: JudgeClient, items: Sequence[CaptionPair]) -> list[JudgedPair]:
        """`AnnotatePairs`."""
        judgements = client.annotate_pairs([(pair.first.text.encode(), pair.second.text.encode()) for pair in items])
        check_number(len(judgements), len(items))
        return [JudgedPair(pair=pair, judgement=judgement) for pair, judgement in zip(items, judgements, strict=True)]

    def record(self, answers: Sequence[JudgedPair]) -> list[Answer]:
        """The labels among `answers`."""
        with self._lock:
            self._asked -= _keys(answer.pair for answer in answers)
        return [answer for answer in answers if answer.judgement.status is Status.OK]

    def forget_answers(self) -> None:
        """Allow all pairs to be drawn again, except those that wait or are being asked."""
        with self._lock:
            self._sampler.forget(without=self._asked)
            self._num_pairs = Counter(number for key in self._asked for number in key)

    def pending(self) -> int:
        """Number of pairs that wait, and of pairs still to be drawn."""
        with self._lock:
            return len(self._returned) + self._num_wanted()

    def retain(self, ids: Set[int]) -> None:
        """Forget pairs with any other caption, those that wait to be asked again included."""
        with self._lock:
            self._sampler.retain(ids)
            self._num_pairs = Counter({number: num for number, num in self._num_pairs.items() if number in ids})
            gone = [pair for pair in self._returned if pair.first.id not in ids or pair.second.id not in ids]
            self._returned = deque(pair for pair in self._returned if pair not in gone)
            self._asked -= _keys(gone)

    def state_dict(self) -> dict[str, Any]:
        """Pairs that were answered."""
        with self._lock:
            num_pairs = self._num_pairs - Counter(number for key in self._asked for number in key)
            return self._sampler.state_dict(without=self._asked) | {
                "ids": np.array(list(num_pairs), np.uint64),
                "num_pairs": np.array(list(num_pairs.values()), np.int64),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        if state:
            self._sampler.load_state_dict(state)
            self._num_pairs = Counter(dict(zip(state["ids"].tolist(), state["num_pairs"].tolist(), strict=True)))


class PointwisePairs(CaptionQuestions):
    """Captions are judged on their own; judgements p and q give the preference sigmoid(logit p - logit q).

    Each caption with a new label is paired with `pairs_per_caption` captions that have one.
    """

    def __init__(self, book: CaptionBook, config: AnnotatorConfig, seed: int) -> None:
        super().__init__(book)
        self._pairs_per_caption, self._sampler = config.pairs_per_caption, PairSampler(config, seed)
        self._lock = threading.Lock()  # of the sampler

    def record(self, answers: Sequence[JudgedCaption]) -> list[Answer]:
        """New pairs, each with at least one of the new labels; reports may evict captions at any moment meanwhile."""
        new = [item for item in self._book.record(answers) if item.judgement.status is Status.OK]
        if not new:
            return []
        ids, probabilities, log2 = self._book.ranked()
        labelled = np.flatnonzero(~np.isnan(probabilities))
        ids, probabilities, log2 = ids[labelled], probabilities[labelled], log2[labelled]
        num = max(0, min(self._pairs_per_caption, len(ids) - 1)) * len(new)
        with self._lock:
            drawn = self._sampler.draw(np.array([item.caption.id for item in new], np.uint64), None, ids, log2, num)
        rows = np.isin(ids, np.array(drawn, np.uint64))
        given = dict(zip(ids[rows].tolist(), probabilities[rows].tolist(), strict=True))
        given |= {item.caption.id: item.judgement.probability for item in new}
        captions = self._book.captions_of(given) | {item.caption.id: item.caption for item in new}
        return [_judged(pair, given) for pair in _pairs_of(drawn, captions)]

    def forget_answers(self) -> None:
        """Ask about all captions again, and allow all pairs again."""
        super().forget_answers()
        with self._lock:
            self._sampler.forget()

    def retain(self, ids: Set[int]) -> None:
        """Forget pairs with any other caption."""
        with self._lock:
            self._sampler.retain(ids)

    def state_dict(self) -> dict[str, Any]:
        """Pairs that were made."""
        with self._lock:
            return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        if state:
            self._sampler.load_state_dict(state)


def pairs_of_judgements(
    judged: Sequence[JudgedCaption], counts: Mapping[int, int], config: AnnotatorConfig, seed: int
) -> list[JudgedPair]:
    """Pairs as by `PointwisePairs`, of captions judged before; weights are the square roots of the counts."""
    labels = [item for item in judged if item.judgement.status is Status.OK]
    captions = {item.caption.id: item.caption for item in labels}
    given = {item.caption.id: item.judgement.probability for item in labels}
    ids = np.array(list(captions), np.uint64)
    log2 = np.log2(np.maximum([counts.get(number, 1) for number in captions], 0.5))
    num = min(config.pairs_per_caption * len(captions), len(captions) * (len(captions) - 1) // 2)
    drawn = PairSampler(config, seed).draw(ids, None, ids, log2, num)
    return [_judged(pair, given) for pair in _pairs_of(drawn, captions)]


def pointwise_preference(p: float, q: float) -> PairJudgement:
    """The preference that two single judgements imply."""
    difference = float(log_odds(p) - log_odds(q))
    preference = 1.0 / (1.0 + math.exp(-difference))
    return PairJudgement(
        status=Status.OK, preference=preference, answer_mass=1.0, position_bias=0.0, cached=True, singles=(p, q)
    )


def _judged(pair: CaptionPair, probabilities: Mapping[int, float]) -> JudgedPair:
    preference = pointwise_preference(probabilities[pair.first.id], probabilities[pair.second.id])
    return JudgedPair(pair=pair, judgement=preference)


def _pairs_of(drawn: Sequence[tuple[int, int]], captions: Mapping[int, Caption]) -> list[CaptionPair]:
    """The pairs of which both captions are known."""
    return [CaptionPair(first=captions[a], second=captions[b]) for a, b in drawn if a in captions and b in captions]


def _keys(pairs: Iterable[CaptionPair]) -> set[tuple[int, int]]:
    return {_key(pair.first.id, pair.second.id) for pair in pairs}


def _key(first: int, second: int) -> tuple[int, int]:
    return min(first, second), max(first, second)


def _weights(log2: np.ndarray, flattening: int) -> np.ndarray:
    weights = np.exp2((log2 - log2.max()) / 2**flattening)
    return weights / weights.sum()
