"""`Rubric`: what the LLM is asked about single items and about pairs.

Invariant: an item, and what it is judged about, are plain text on one line each between fixed pieces of prompt, so they
can change neither the prompt's structure nor its length beyond the rubric's limit.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llm_server.rubrics.question import Question, plain_line

PROMPT_VERSION = 2
"""Raise whenever the same rubric and text make another prompt, here, in `question.py` or in `prompt_tokens.py`. It is
part of every engine's fingerprint, so that judgements of older prompts are not reused."""
MINOR = 0.3
"""The weight of a minor kind: an item that is nothing else stays below theta."""
MAX_PARTS = 16
"""At most this many parts of one item are asked about, the last ones: a step's outcome comes last."""
HASHED_IF_USED = ("about_label", "about", "answers")
"""Keys that older rubrics lack: left out of a hash where they are empty, so that stored judgements stay valid."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An item with its answer, shown to the model before the question."""

    item: str
    positive: bool
    kind: str = ""
    """The answer, if the rubric has kinds or graded `answers`."""
    about: str = ""
    """What the item is judged about, if the rubric has an `about_label`."""


@dataclass(frozen=True, kw_only=True)
class AboutItem:
    """A calibration item of a rubric with an `about_label`."""

    about: str
    """What the item is judged about."""
    item: str


@dataclass(frozen=True, kw_only=True)
class GradedAnswer:
    """One of several answers with a value each."""

    word: str
    """The answer as it follows the prompt, its leading space included; one token."""
    value: float
    """Its part in the item's probability, which is the expected value of the answers; in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Items for measuring a model's bias, and theta with `threshold: auto` (`llm_server.service.calibration`)."""

    items: tuple[str | AboutItem, ...] = ()
    """Items that deserve the negative answer, of graded answers the one with the lowest value; none may be an
    example."""
    positives: tuple[str | AboutItem, ...] = ()
    """Items that deserve the positive answer, likewise. Without any, theta is the maximum of `items` plus the
    margin."""
    negatives_per_positive: float = 1.0
    """The ratio of negative to positive items, weighted by their reward, for which theta is chosen."""
    margin: float = 0.25
    """Log-odds added to the highest of `items` where there are no `positives`."""


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """Two items with the answer which is better, shown to the model before the question."""

    first: str
    second: str
    better: str
    """`first`, `second` or `tie`."""


@dataclass(frozen=True, kw_only=True)
class PairRubric:
    """How two items are compared; every pair is asked in both orders."""

    instructions: str
    """What the model reads first."""
    first: str
    """The answer that the item shown first is better, its leading space included; one token."""
    second: str
    """Likewise of the item shown second."""
    tie: str = ""
    """The answer that neither is better, if ties are allowed; it counts half for both."""
    first_label: str = "First:"
    """Precedes the item shown first."""
    second_label: str = "Second:"
    """Precedes the item shown second, on a line of its own."""
    answer_label: str = "Better:"
    """Precedes an answer, on a line of its own."""
    examples: tuple[PairExample, ...] = ()
    """Shown in this order."""
    item_examples: bool = False
    """Also show the rubric's examples of single items first, under `first_label` and with their own answers."""
    items: tuple[Example, ...] = ()
    """Single items to show instead of the rubric's: positive ones with the answer `second`, others with `first`."""
    min_answer_mass: float = 0.1
    """Below this total probability of the answers, the model has not answered."""
    tie_margin: float = 0.0
    """A preference within this distance of 0.5 is a tie."""


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """Goal, instructions, examples and answers: everything besides the model that decides a judgement."""

    id: str
    """The name in requests."""
    version: str
    """Changes whenever the answers may change."""
    goal: str
    """One sentence for people: what a positive answer means."""
    style: str
    """`completion` (one text; right for small models) or `chat` (the model's chat template; right for large instruct
    models)."""
    instructions: str
    """What the model reads first."""
    positive: str = ""
    """The positive answer as it follows the prompt, its leading space included; one token."""
    negative: str = ""
    """The negative answer, likewise."""
    positive_kinds: tuple[str, ...] = ()
    """In place of `positive` and `negative`: one answer per kind of positive item. Examples answer with their kind, and
    an item's probability is the sum over these answers after the model's bias towards each answer is removed."""
    minor_kinds: tuple[str, ...] = ()
    """Answers for items between positive and negative; they have the weight `MINOR`."""
    negative_kinds: tuple[str, ...] = ()
    """One answer per kind of negative item."""
    answers: tuple[GradedAnswer, ...] = ()
    """In place of `positive` and `negative`: graded answers. Examples answer with a word of theirs as their `kind`, and
    an item's probability is the expected value; with calibration items, after the model's bias towards each answer is
    removed, as for kinds."""
    separator: str = ""
    """If set, it separates the parts of an item, such as the messages of one step; each part is asked about by itself,
    and the item has the judgement of its likeliest part."""
    item_label: str = "Message:"
    """Precedes an item."""
    about_label: str = ""
    """If set, every item is judged about a second text (a goal, an instruction, a question), which the label precedes
    on the line above the item's. Whoever asks gives that text with the item; examples and calibration items have it as
    `about`."""
    answer_label: str = "Answer:"
    """Precedes an answer, on a line of its own."""
    examples: tuple[Example, ...] = ()
    """Shown in this order."""
    max_item_chars: int = 256
    """Longer items, and longer texts that they are judged about, are cut."""
    min_answer_mass: float = 0.1
    """Below this total probability of the answers, the model has not answered."""
    threshold: float | None = None
    """Theta, the probability above which an item is positive; None (in YAML `auto`) derives it from `calibration`."""
    calibration: Calibration = field(default_factory=Calibration)
    answer_prefix: str = ""
    """Begins the model's turn in `chat` style, for example to end the thoughts of a reasoning model."""
    pairs: PairRubric | None = None
    """How two items are compared; without it, only single items are judged."""

    @cached_property
    def content_hash(self) -> str:
        """Hash of everything that can change a judgement of a single item, or theta; part of the store's key."""
        return _hash({key: value for key, value in dataclasses.asdict(self).items() if key != "pairs"})

    @cached_property
    def pairs_hash(self) -> str:
        """Hash of everything that can change a judgement of a pair; part of the store's key; empty without `pairs`."""
        if self.pairs is None:
            return ""
        shared = {"style": self.style, "max_item_chars": self.max_item_chars, "answer_prefix": self.answer_prefix}
        shown = {"items_shown": self.question().examples} if self.pairs.item_examples else {}
        return _hash(shared | shown | dataclasses.asdict(self.pairs))

    def parts(self, item: bytes) -> list[bytes]:
        """The distinct texts to ask about in order to judge `item`: its parts, or the item itself if it has none."""
        if not self.separator:
            return [item]
        found = dict.fromkeys(part.strip() for part in item.split(self.separator.encode()))
        return [part for part in found if part][-MAX_PARTS:] or [item]

    def item_text(self, item: bytes) -> str | None:
        """`item` as one printable line within the limit; None if it is not UTF-8 or has no printable character."""
        try:
            text = item.decode("utf-8")
        except UnicodeDecodeError:
            return None
        return self._one_line(text) or None

    def _one_line(self, text: str) -> str:
        return plain_line(text, self.max_item_chars)

    def check_about(self, has_about: bool) -> None:
        """ValueError unless items come with what they are judged about exactly where the rubric has an
        `about_label`."""
        if self.about_label and not has_about:
            label = f"its about_label is {self.about_label!r}"
            raise ValueError(f"rubric '{self.id}' judges every item about something ({label}): give an `about`")
        if has_about and not self.about_label:
            raise ValueError(f"rubric '{self.id}' has no about_label, it judges items alone: leave `about` out")

    def asked_text(self, item: bytes, about: bytes = b"") -> str | None:
        """The text that asks about `item`: its line, with an `about_label` after the line of `about`. None where one
        of them is no text, see `item_text`."""
        text = self.item_text(item)
        if text is None or not self.about_label:
            return text
        line = self.item_text(about)
        return line and self.about_text(line, text)

    def about_text(self, about: str, item: str) -> str:
        """The text that asks about an item and what it is judged about, each as `item_text` makes it."""
        return f"{about}\n{self.item_label} {item}"

    def shown_text(self, shown: str | AboutItem | Example) -> str | None:
        """`asked_text` of an example or a calibration item."""
        return self.asked_text(*(text.encode("utf-8", "surrogatepass") for text in item_and_about(shown)))

    def pair_text(self, first: str, second: str) -> str:
        """The text that asks about two items, each as `item_text` makes it, in this order."""
        return f"{first}\n{self._pairs().second_label} {second}"

    def question(self) -> Question:
        """The question about a single item; the positive answers come first, graded ones in their own order."""
        positives, negatives = self.positive_kinds or (self.positive,), self.negative_kinds or (self.negative,)
        answers = positives + self.minor_kinds + negatives
        weights = (1.0,) * len(positives) + (MINOR,) * len(self.minor_kinds) + (0.0,) * len(negatives)
        if self.answers:
            answers = tuple(graded.word for graded in self.answers)
            weights = tuple(float(graded.value) for graded in self.answers)
        words = {True: self.positive, False: self.negative}
        return Question(
            style=self.style,
            instructions=self.instructions,
            label=self.about_label or self.item_label,
            answer_label=self.answer_label,
            examples=tuple((self.shown_text(s) or "", s.kind or words[s.positive]) for s in self.examples),
            answers=answers,
            weights=weights,
            answer_prefix=self.answer_prefix,
        )

    def pair_question(self) -> Question:
        """The question about a pair; its first answer means that the first item is better. ValueError without
        `pairs`."""
        pairs = self._pairs()
        words = {"first": pairs.first, "second": pairs.second, "tie": pairs.tie}
        items = tuple((self._one_line(s.item), pairs.second if s.positive else pairs.first) for s in pairs.items)
        if pairs.item_examples:
            items = self.question().examples
        compared = tuple(
            (self.pair_text(self._one_line(pair.first), self._one_line(pair.second)), words[pair.better])
            for pair in pairs.examples
        )
        return Question(
            style=self.style,
            instructions=pairs.instructions,
            label=pairs.first_label,
            answer_label=pairs.answer_label,
            examples=items + compared,
            answers=tuple(word for word in words.values() if word),
            answer_prefix=self.answer_prefix,
        )

    def _pairs(self) -> PairRubric:
        if self.pairs is None:
            raise ValueError(f"rubric '{self.id}' has no `pairs` section: it cannot compare two items")
        return self.pairs


def item_and_about(shown: str | AboutItem | Example) -> tuple[str, str]:
    """An example's or a calibration item's text, and what it is judged about, empty for nothing."""
    return (shown, "") if isinstance(shown, str) else (shown.item, shown.about)


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_used(content), sort_keys=True).encode()).hexdigest()[:16]


def _used(content: Any) -> Any:
    """`content` without the empty ones of `HASHED_IF_USED`, at any depth."""
    if isinstance(content, dict):
        return {key: _used(value) for key, value in content.items() if value or key not in HASHED_IF_USED}
    if isinstance(content, list | tuple):
        return [_used(value) for value in content]
    return content
