"""Pairs are asked in both orders: what the place alone is worth to the model cancels, and is measured.

Invariant: swapping the items of a pair turns a preference p into 1 - p exactly.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from llm_server.annotation import Judgement, PairJudgement, Status, log_odds


def both_orders(pair: tuple[bytes, bytes]) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """The pair as it is and swapped."""
    first, second = pair
    return (first, second), (second, first)


def pair_judgement(as_given: Judgement, swapped: Judgement, tie_margin: float = 0.0) -> PairJudgement:
    """One judgement from the probabilities, in both orders, that the item shown first is better.

    With l and l' their log-odds, the preference is sigmoid((l - l') / 2) and the position bias (l + l') / 2: a model that adds a
    constant to the first place's log-odds gets the preference it would have without it.
    """
    mass, cached = min(as_given.answer_mass, swapped.answer_mass), as_given.cached and swapped.cached
    if as_given.status is not Status.OK or swapped.status is not Status.OK:
        status = Status.REJECTED if Status.REJECTED in (as_given.status, swapped.status) else Status.UNPARSED
        return PairJudgement(
            status=status, preference=math.nan, answer_mass=mass, position_bias=math.nan, cached=cached
        )
    one, other = float(log_odds(as_given.probability)), float(log_odds(swapped.probability))
    preference = 1.0 / (1.0 + math.exp((other - one) / 2))
    if abs(preference - 0.5) <= tie_margin:
        preference = 0.5
    return PairJudgement(
        status=Status.OK, preference=preference, answer_mass=mass, position_bias=(one + other) / 2, cached=cached
    )


def combine_orders(
    orders: "Future[list[Judgement]]",
    texts: Sequence[tuple[str | None, str | None]],
    asked: Sequence[int],
    tie_margin: float,
) -> "Future[list[PairJudgement]]":
    """A future of one judgement per pair of `texts`, from that of both orders, in turn, of the pairs at `asked`; the others read
    alike and are ties, or are no text at all. Cancelling it cancels `orders`."""
    combined: Future[list[PairJudgement]] = Future()

    def finish(done: "Future[list[Judgement]]") -> None:
        with suppress(InvalidStateError):  # cancelled in the meantime
            if done.cancelled():
                combined.cancel()
            elif error := done.exception():
                combined.set_exception(error)
            else:
                answers = done.result()
                by_position = {
                    n: pair_judgement(answers[2 * k], answers[2 * k + 1], tie_margin) for k, n in enumerate(asked)
                }
                combined.set_result([by_position.get(n) or _alike(text[0]) for n, text in enumerate(texts)])

    orders.add_done_callback(finish)
    combined.add_done_callback(lambda future: orders.cancel() if future.cancelled() else None)
    return combined


def _alike(text: str | None) -> PairJudgement:
    if text is None:
        return PairJudgement(status=Status.REJECTED, preference=math.nan, answer_mass=0.0, position_bias=math.nan)
    return PairJudgement(status=Status.OK, preference=0.5, answer_mass=1.0, position_bias=0.0)
