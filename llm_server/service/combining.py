"""From answers to judgements: of an item from those about its parts, of a pair from those in both orders.

Invariant: an item has the judgement of its most probable part, and parts without a label are ignored; swapping a pair's
items turns a preference p into 1 - p exactly.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from llm_server.annotation import Judgement, PairJudgement, Status, log_odds
from llm_server.service.pending import map_future


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
