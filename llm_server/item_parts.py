"""An item whose parts are judged one by one is what its likeliest part is.

Invariant: a part that is no label neither adds to an item nor takes from it; an item without a single label is none.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from llm_server.annotation import Judgement, Status


def judgement_of_parts(parts: Sequence[Judgement]) -> Judgement:
    """The judgement of the part with the highest probability; without a label among `parts`, the first of them."""
    best = max(parts, key=lambda part: -math.inf if part.status is not Status.OK else part.probability)
    return Judgement(
        status=best.status, probability=best.probability, answer_mass=best.answer_mass, cached=all(part.cached for part in parts)
    )


def combine_parts(answers: "Future[list[Judgement]]", parts: Sequence[Sequence[bytes]]) -> "Future[list[Judgement]]":
    """A future of one judgement per item from `answers` about all `parts`, item after item. Cancelling it cancels `answers`."""
    if all(len(found) == 1 for found in parts):
        return answers
    combined: Future[list[Judgement]] = Future()

    def finish(done: "Future[list[Judgement]]") -> None:
        with suppress(InvalidStateError):  # cancelled in the meantime
            if done.cancelled():
                combined.cancel()
            elif error := done.exception():
                combined.set_exception(error)
            else:
                rest = iter(done.result())
                combined.set_result([judgement_of_parts([next(rest) for _ in found]) for found in parts])

    answers.add_done_callback(finish)
    combined.add_done_callback(lambda future: answers.cancel() if future.cancelled() else None)
    return combined
