"""Pairs are asked in both orders: the model's position bias cancels, and is measured.

Invariant: swapping the items of a pair turns a preference p into 1 - p exactly.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future

from llm_server.annotation import Judgement, PairJudgement, Status, log_odds
from llm_server.service.pending import map_future


def pair_judgement(as_given: Judgement, swapped: Judgement, tie_margin: float = 0.0) -> PairJudgement:
    """One judgement from the probabilities, in both orders, that the item shown first is better.

    With l and l' their log-odds, the preference is sigmoid((l - l') / 2) and the position bias (l + l') / 2: a model
    that adds a constant to the first place's log-odds gets the preference it would have without it.
    """
    mass, cached = min(as_given.answer_mass, swapped.answer_mass), as_given.cached and swapped.cached
    statuses = {as_given.status, swapped.status}
    status, preference, bias = Status.OK, math.nan, math.nan
    if statuses != {Status.OK}:
        status = Status.REJECTED if Status.REJECTED in statuses else Status.UNPARSED
    else:
        one, other = float(log_odds(as_given.probability)), float(log_odds(swapped.probability))
        preference, bias = 1.0 / (1.0 + math.exp((other - one) / 2)), (one + other) / 2
        if abs(preference - 0.5) <= tie_margin:
            preference = 0.5
    return PairJudgement(status=status, preference=preference, answer_mass=mass, position_bias=bias, cached=cached)


def combine_orders(
    orders: "Future[list[Judgement]]",
    texts: Sequence[tuple[str | None, str | None]],
    asked: Sequence[int],
    tie_margin: float,
) -> "Future[list[PairJudgement]]":
    """A future of one judgement per pair of `texts`. `orders` holds two judgements, one per order, for each pair at the
    positions `asked`; the other pairs are ties of equal texts, or no texts at all. Cancelling it cancels `orders`."""

    def combine(answers: list[Judgement]) -> list[PairJudgement]:
        both = zip(asked, answers[::2], answers[1::2], strict=True)
        by_position = {n: pair_judgement(as_given, swapped, tie_margin) for n, as_given, swapped in both}
        return [by_position.get(n) or _alike(text[0]) for n, text in enumerate(texts)]

    return map_future(orders, combine)


def _alike(text: str | None) -> PairJudgement:
    if text is None:
        return PairJudgement(status=Status.REJECTED, preference=math.nan, answer_mass=0.0, position_bias=math.nan)
    return PairJudgement(status=Status.OK, preference=0.5, answer_mass=1.0, position_bias=0.0)
