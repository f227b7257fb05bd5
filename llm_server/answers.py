"""From what a model said to a `Score`: log-probabilities of the answers, of the likeliest tokens, or plain text.

Invariant: the answer mass is a probability over the whole vocabulary; where nothing allowed was said it is 0, and the probability
is then NaN.
"""

import math
import re
from collections.abc import Iterable, Sequence

from llm_server.annotation import Score

NO_ANSWER = Score(math.nan, 0.0)
THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


def score_of_answers(log_probabilities: Sequence[float]) -> Score:
    """From the log-probability of every answer: the wanted one, its opposite, and perhaps one that counts half."""
    return _score([math.exp(value) for value in log_probabilities])


def score_of_top_tokens(tokens: Iterable[tuple[str, float]], answers: Sequence[str]) -> Score:
    """From the likeliest tokens with their log-probabilities, as hosted models give them.

    Spaces around a token and its case do not matter, and forms of one answer add up. An answer that is not among them has at most
    the probability of the least likely one that is, and of all that are not together; it is taken to have that.
    """
    listed = [(token, math.exp(value)) for token, value in tokens]
    found = [math.fsum(p for token, p in listed if _plain(token) == _plain(answer)) for answer in answers]
    if not any(found):
        return NO_ANSWER
    unseen = min(min(p for _, p in listed), max(0.0, 1.0 - math.fsum(p for _, p in listed)))
    return Score(_score([p or unseen for p in found]).probability, min(math.fsum(found), 1.0))


def score_of_text(text: str, answers: Sequence[str]) -> Score:
    """From generated text: the answer that it begins with, or the only one it holds as a word; thinking aloud is passed over."""
    said = THOUGHTS.sub(" ", text).strip().casefold()
    places = {}
    for number, answer in enumerate(answers):
        if match := re.search(rf"(?<!\w){re.escape(_plain(answer))}(?!\w)", said):
            places[number] = match.start()
    first = min(places, key=lambda number: places[number], default=None)
    if first is None or (len(places) > 1 and re.search(r"\w", said[: places[first]])):
        return NO_ANSWER
    return _score([1.0 if number == first else 0.0 for number in range(len(answers))])


def _score(probabilities: Sequence[float]) -> Score:
    mass = math.fsum(probabilities)
    if not mass > 0.0:  # NaN too
        return NO_ANSWER
    return Score((probabilities[0] + 0.5 * math.fsum(probabilities[2:])) / mass, min(mass, 1.0))


def _plain(word: str) -> str:
    return word.strip().casefold()
