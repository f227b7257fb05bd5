"""Pairs of captions: which are made, and what is asked to learn which of the two is better.

Invariant: no caption is paired with itself, the empty caption with none, and no pair comes twice, whichever way round; there are at
most `pairs_per_caption` times as many pairs as captions, and never more than `max_pairs`.
"""

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.service_schema import AnnotatorConfig
from llm_server.annotation import Caption, CaptionPair, JudgedCaption, JudgedPair, PairJudgement, Status
from llm_server.caption_book import CaptionBook
from llm_server.questions import AnnotationClient, Answer, CaptionQuestions, check_number

ROUNDS = 6
"""Attempts to draw new pairs, each with weights flattened by a square root."""


class PairSampler:
    """Draws new pairs; a function of seed and calls. Not thread-safe.

    A caption's weight is the square root of its priority under `annotator.policy` (with `frequency`: the square root of its count), so
    that frequent captions are compared more often, but rare ones too.
    """

    def __init__(self, config: AnnotatorConfig, seed: int) -> None:
        self._max_pairs, self._seed = config.max_pairs, seed
        self._taken: set[tuple[int, int]] = set()
        self._num_draws = 0

    def __len__(self) -> int:
        """Pairs drawn so far."""
        return len(self._taken)

    def draw(
        self, firsts: Sequence[Caption], first_log2: np.ndarray | None, others: Sequence[Caption], log2: np.ndarray, num: int
    ) -> list[CaptionPair]:
        """At most `num` new pairs: one of `firsts` with one of `others`, the latter drawn by priorities 2^log2 [M].

        With `first_log2` [N] the first is drawn likewise; without, each of `firsts` in turn gets its share.
        """
        num = min(num, self._max_pairs - len(self._taken))
        pairs: list[CaptionPair] = []
        for flattening in range(1, ROUNDS + 1):
            missing = num - len(pairs)
            if missing <= 0 or not firsts or not others:
                break
            rng = np.random.default_rng((self._seed, self._num_draws))
            self._num_draws += 1
            if first_log2 is None:
                rows = np.arange(missing) % len(firsts)
            else:
                rows = rng.choice(len(firsts), size=2 * missing, p=_weights(first_log2, flattening))
            partners = rng.choice(len(others), size=len(rows), p=_weights(log2, flattening))
            swapped = rng.random(len(rows)) < 0.5
            for row, partner, swap in zip(rows.tolist(), partners.tolist(), swapped.tolist(), strict=True):
                first, second = firsts[row], others[partner]
                if len(pairs) < num and self._is_new(first, second):
                    pairs.append(CaptionPair(first=second, second=first) if swap else CaptionPair(first=first, second=second))
        return pairs

    def forget(self, pairs: Sequence[CaptionPair]) -> None:
        """Pairs that come to nothing may be drawn again."""
        self._taken -= {_key(pair.first, pair.second) for pair in pairs}

    def _is_new(self, first: Caption, second: Caption) -> bool:
        key = _key(first, second)
        if not first.id or not second.id or first.id == second.id or key in self._taken:
            return False
        self._taken.add(key)
        return True

    def state_dict(self, without: Sequence[CaptionPair] = ()) -> dict[str, Any]:
        """Pairs drawn, less those that are being asked."""
        taken = sorted(self._taken - {_key(pair.first, pair.second) for pair in without})
        return {"pairs": np.array(taken, np.uint64).reshape(-1, 2), "num_draws": self._num_draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._taken = {(first, second) for first, second in state["pairs"].tolist()}
        self._num_draws = state["num_draws"]


class ComparedPairs:
    """The LLM compares both captions of a pair."""

    def __init__(self, book: CaptionBook, config: AnnotatorConfig, seed: int) -> None:
        self._book, self._config, self._sampler = book, config, PairSampler(config, seed)
        self._lock = threading.Lock()
        self._returned: deque[CaptionPair] = deque()
        self._asked: dict[tuple[int, int], CaptionPair] = {}

    def next_batch(self, max_items: int) -> Sequence[CaptionPair]:
        """Pairs whose request failed, then new ones."""
        with self._lock:
            batch = [self._returned.popleft() for _ in range(min(max_items, len(self._returned)))]
            wanted = min(max_items - len(batch), self._num_wanted())
            if wanted > 0:
                captions, log2 = self._book.ranked()
                batch += self._sampler.draw(captions, log2, captions, log2, wanted)
            self._asked.update((_key(pair.first, pair.second), pair) for pair in batch)
            return batch

    def _num_wanted(self) -> int:
        num_captions = len(self._book)
        most = min(self._config.pairs_per_caption * num_captions, num_captions * (num_captions - 1) // 2, self._config.max_pairs)
        return max(0, most - len(self._sampler))

    def put_back(self, items: Sequence[CaptionPair]) -> None:
        """Asked again before any new pair."""
        with self._lock:
            self._returned.extend(items)

    def ask(self, client: AnnotationClient, items: Sequence[CaptionPair]) -> list[JudgedPair]:
        """`AnnotatePairs`."""
        judgements = client.annotate_pairs([(pair.first.text.encode(), pair.second.text.encode()) for pair in items])
        check_number(len(judgements), len(items))
        return [JudgedPair(pair=pair, judgement=judgement) for pair, judgement in zip(items, judgements, strict=True)]

    def record(self, answers: Sequence[JudgedPair]) -> list[Answer]:
        """Those that are labels."""
        with self._lock:
            for answer in answers:
                self._asked.pop(_key(answer.pair.first, answer.pair.second), None)
        return [answer for answer in answers if answer.judgement.status is Status.OK]

    def pending(self) -> int:
        """Pairs that wait, and pairs still to be drawn."""
        with self._lock:
            return len(self._returned) + self._num_wanted()

    def state_dict(self) -> dict[str, Any]:
        """Pairs that were answered."""
        with self._lock:
            return self._sampler.state_dict(without=list(self._asked.values()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        if state:
            self._sampler.load_state_dict(state)


class PointwisePairs(CaptionQuestions):
    """Captions are judged by themselves, and preferences made of the judgements p and q: s(logit p - logit q), s the logistic function.

    Each new label is paired with `pairs_per_caption` captions that have one.
    """

    def __init__(self, book: CaptionBook, config: AnnotatorConfig, seed: int) -> None:
        super().__init__(book)
        self._pairs_per_caption, self._sampler = config.pairs_per_caption, PairSampler(config, seed)

    def record(self, answers: Sequence[JudgedCaption]) -> list[Answer]:
        """New pairs, each with at least one of the new labels."""
        new = [item for item in self._book.record(answers) if item.judgement.status is Status.OK]
        if not new:
            return []
        captions, log2 = self._book.ranked()
        _, probabilities, _ = self._book.look_up(np.array([caption.id for caption in captions], np.uint64))
        labelled = np.flatnonzero(~np.isnan(probabilities))
        given = dict(zip((captions[row].id for row in labelled), probabilities[labelled].tolist(), strict=True))
        pairs = self._sampler.draw(
            [item.caption for item in new],
            None,
            [captions[row] for row in labelled],
            log2[labelled],
            min(self._pairs_per_caption, len(labelled) - 1) * len(new),
        )
        return [JudgedPair(pair=pair, judgement=pointwise_preference(given[pair.first.id], given[pair.second.id])) for pair in pairs]

    def state_dict(self) -> dict[str, Any]:
        """Pairs that were made."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        if state:
            self._sampler.load_state_dict(state)


def pairs_of_judgements(judged: Sequence[JudgedCaption], counts: Mapping[int, int], config: AnnotatorConfig, seed: int) -> list[JudgedPair]:
    """As `PointwisePairs` makes them, of captions that were all judged before; weights are the square roots of the counts."""
    given = {item.caption.id: (item.caption, item.judgement.probability) for item in judged if item.judgement.status is Status.OK}
    captions = [caption for caption, _ in given.values()]
    log2 = np.log2(np.maximum([counts.get(caption.id, 1) for caption in captions], 0.5))
    num = min(config.pairs_per_caption * len(captions), len(captions) * (len(captions) - 1) // 2)
    pairs = PairSampler(config, seed).draw(captions, None, captions, log2, num)
    return [JudgedPair(pair=pair, judgement=pointwise_preference(given[pair.first.id][1], given[pair.second.id][1])) for pair in pairs]


def pointwise_preference(p: float, q: float) -> PairJudgement:
    """What two single judgements say of the pair."""
    difference = _log_odds(p) - _log_odds(q)
    return PairJudgement(status=Status.OK, preference=1.0 / (1.0 + math.exp(-difference)), answer_mass=1.0, position_bias=0.0, cached=True)


def _log_odds(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def _key(first: Caption, second: Caption) -> tuple[int, int]:
    return min(first.id, second.id), max(first.id, second.id)


def _weights(log2: np.ndarray, flattening: int) -> np.ndarray:
    weights = np.exp2((log2 - log2.max()) / 2**flattening)
    return weights / weights.sum()
