"""From what a model said to a `Score`: log-probabilities of the answers, of the likeliest tokens, or plain text.

Invariant: the answer mass is a probability over the whole vocabulary. Without any allowed answer the mass is 0 and the
probability NaN.
"""

import math
import re
from collections.abc import Iterable, Sequence

from llm_server.annotation import Score

NO_ANSWER = Score(math.nan, 0.0)
WEIGHTS = (1.0, 0.0, 0.5)
"""The wanted answer, its opposite, and a tie, which counts half."""
THOUGHTS = re.compile(
    r".*(?:</(?:think|thinking|thought|thoughts|reasoning|seed:think)>|\[/THINK\]|\u25c1/think\u25b7"
    r"|<\|channel\|>final<\|message\|>)",
    re.DOTALL,
)
"""Thoughts and the marker that ends them, in the words of several families."""
OPENING, CLOSING = r"[\s*_`\"'\u201c\u2018(\[]*", r"[*_`\"'\u201d\u2019)\]]*"
"""Markup and quotes that may surround an answer."""
TURN_END = r"(?:<\|\w+\|>|</s>|<end_of_turn>)"
"""A template's marker that some servers leave in the text."""
END = rf"(?:\s*{TURN_END}?\s*\Z|[^\S\n]*(?=\n)|[.:;!]{CLOSING}(?=\s|\Z)|(?P<goes_on>,|\s*[\u2013\u2014])(?=\s|\Z))"
ANSWER_LABEL = "Answer:"
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(0x100) if byte not in _PRINTABLE)
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + place): byte for place, byte in enumerate(_OTHERS)}
"""Byte by its character in the vocabulary of a byte-level tokenizer, in which printable bytes represent themselves."""


def score_of_answers(log_probabilities: Sequence[float], weights: Sequence[float] = WEIGHTS) -> Score:
    """The score from the log-probability of every answer, each counted with its weight."""
    return _score([math.exp(value) for value in log_probabilities], weights)


def score_of_top_tokens(
    tokens: Iterable[tuple[str, float]], answers: Sequence[str], weights: Sequence[float] = WEIGHTS
) -> Score:
    """The score from the likeliest tokens with their log-probabilities, as hosted models return them.

    Tokens may be texts or a tokenizer's pieces. Surrounding spaces and case are ignored (but "a" begins a sentence and
    is not the answer A), and all forms of one answer are summed. The probability of an answer that is not listed is
    estimated by its upper bound: that of the least likely listed token, and what all listed tokens together leave.
    """
    listed = [(text_of_piece(token), math.exp(min(value, 0.0))) for token, value in tokens]
    found = [math.fsum(p for token, p in listed if _plain(token) == _plain(answer)) for answer in answers]
    if not any(found):
        return NO_ANSWER
    unseen = min(min(p for _, p in listed), max(0.0, 1.0 - math.fsum(p for _, p in listed)))
    score = _score([p or unseen for p in found], weights)
    return Score(score.probability, min(math.fsum(found), 1.0), score.shares)


def text_of_piece(piece: str) -> str:
    """The text of a tokenizer's piece: both `\u2581Yes` (SentencePiece) and `\u0120Yes` (byte-level, GPT-2) are `
    Yes`."""
    if piece.isascii():
        return piece
    try:
        return bytes(BYTES[letter] for letter in piece).decode()
    except (KeyError, UnicodeDecodeError):
        return piece.replace("\u2581", " ")


def score_of_text(
    text: str, answers: Sequence[str], label: str = ANSWER_LABEL, weights: Sequence[float] = WEIGHTS
) -> Score:
    """The score from generated text that is an answer, or begins with one and a full stop, comma or line break.

    `label` or "Answer:" may precede the answer, and so may thoughts that end in a marker such as `</think>`. Answers of
    a single letter are case-sensitive ("a better one" is not A). Later words are ignored, since any sentence may
    contain an answer.
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
    # "Yes. No." and "A, or rather B" are ambiguous.
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
    probability = math.fsum(share * weight for share, weight in zip(shares, weights, strict=False))
    return Score(probability, min(mass, 1.0), shares)


def _plain(word: str) -> str:
    bare = word.strip()
    return bare if len(bare) == 1 else bare.casefold()
