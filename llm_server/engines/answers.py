"""From what a model said to a `Score`: log-probabilities of the answers, of the likeliest tokens, or plain text.

Invariant: the answer mass is a probability over the whole vocabulary; where nothing allowed was said it is 0, and the probability
is then NaN.
"""

import math
import re
from collections.abc import Iterable, Sequence

from llm_server.annotation import Score

NO_ANSWER = Score(math.nan, 0.0)
WEIGHTS = (1.0, 0.0, 0.5)
"""The wanted answer, its opposite, and one that counts half."""
THOUGHTS = re.compile(r".*</think>", re.DOTALL)
OPENING, CLOSING = r"[\s*_`\"'\u201c\u2018(\[]*", r"[*_`\"'\u201d\u2019)\]]*"
"""What may stand around an answer."""
END = rf"(?:\s*\Z|[^\S\n]*(?=\n)|[.:;!]{CLOSING}(?=\s|\Z)|(?P<goes_on>,|\s*[\u2013\u2014])(?=\s|\Z))"
ANSWER_LABEL = "Answer:"
_AS_THEY_ARE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(0x100) if byte not in _AS_THEY_ARE)
BYTES = {chr(byte): byte for byte in _AS_THEY_ARE} | {chr(0x100 + place): byte for place, byte in enumerate(_OTHERS)}
"""Byte by the letter that stands for it in the pieces of a byte-level tokenizer: printable ones stand for themselves."""


def score_of_answers(log_probabilities: Sequence[float], weights: Sequence[float] = WEIGHTS) -> Score:
    """From the log-probability of every answer, of which each counts with its weight."""
    return _score([math.exp(value) for value in log_probabilities], weights)


def score_of_top_tokens(
    tokens: Iterable[tuple[str, float]], answers: Sequence[str], weights: Sequence[float] = WEIGHTS
) -> Score:
    """From the likeliest tokens with their log-probabilities, as hosted models give them.

    Tokens may be texts or a tokenizer's pieces. Spaces around a token and its case do not matter (save that "a" begins a sentence and is no A), and forms of one answer add up.
    An answer that is not among them has at most the probability of the least likely one that is, and of all that are not together;
    it is taken to have that.
    """
    listed = [(text_of_piece(token), math.exp(min(value, 0.0))) for token, value in tokens]
    found = [math.fsum(p for token, p in listed if _plain(token) == _plain(answer)) for answer in answers]
    if not any(found):
        return NO_ANSWER
    unseen = min(min(p for _, p in listed), max(0.0, 1.0 - math.fsum(p for _, p in listed)))
    score = _score([p or unseen for p in found], weights)
    return Score(score.probability, min(math.fsum(found), 1.0), score.shares)


def text_of_piece(piece: str) -> str:
    """What a token reads, where an endpoint gives it as its tokenizer writes it: `\u2581Yes` (SentencePiece) and `\u0120Yes` (bytes as
    letters, GPT-2's) are ` Yes`."""
    if piece.isascii():
        return piece
    try:
        return bytes(BYTES[letter] for letter in piece).decode()
    except (KeyError, UnicodeDecodeError):
        return piece.replace("\u2581", " ")


def score_of_text(
    text: str, answers: Sequence[str], label: str = ANSWER_LABEL, weights: Sequence[float] = WEIGHTS
) -> Score:
    """From generated text: the answer that it is, or that it begins with before a full stop, a comma or the line's end.

    `label` or "Answer:" may stand before it; thinking aloud is passed over up to its end. An answer of one letter counts in its own
    case alone ("a better one" is no A). What else is said may hold an answer as a word without meaning it, so it is none.
    """
    said = THOUGHTS.sub("", text)
    words = [_pattern(answer) for answer in answers]
    labels = "|".join(re.escape(known.strip().removesuffix(":")) for known in (label, ANSWER_LABEL))
    one_of_them = "|".join(f"({word})" for word in words)
    found = re.match(rf"{OPENING}(?:(?i:{labels}){CLOSING}:{OPENING})?(?:{one_of_them}){CLOSING}{END}", said)
    if not found:
        return NO_ANSWER
    number = next(place for place in range(len(words)) if found.group(place + 1) is not None)
    others = "|".join(word for place, word in enumerate(words) if place != number)
    rest = said[found.end() :].partition("\n")[0]
    # "Yes. No." and "A, or rather B" are both and neither.
    between = r"(?:.*\W)?" if found.group("goes_on") else OPENING
    if others and re.match(rf"{between}(?:{others})(?!\w)", rest):
        return NO_ANSWER
    return _score([1.0 if place == number else 0.0 for place in range(len(words))], weights)


def _pattern(answer: str) -> str:
    word = re.escape(answer.strip())
    return word if len(answer.strip()) == 1 else f"(?i:{word})"


def _score(probabilities: Sequence[float], weights: Sequence[float]) -> Score:
    mass = math.fsum(probabilities)
    if not mass > 0.0:  # NaN too
        return NO_ANSWER
    shares = tuple(p / mass for p in probabilities)
    return Score(
        math.fsum(share * weight for share, weight in zip(shares, weights, strict=False)), min(mass, 1.0), shares
    )


def _plain(word: str) -> str:
    bare = word.strip()
    return bare if len(bare) == 1 else bare.casefold()
