"""`Rubric`: what the LLM is asked about single items and about pairs; `Question`: the prompt template of one such request, as a
completion to continue or as a conversation.

Invariant: an item is put between two fixed pieces of prompt as plain text on one line, so it can change neither the prompt's structure
nor its length beyond the rubric's limit; the examples look exactly like it, and answers are single words in a fixed place.
"""

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

PROMPT_VERSION = 2
"""Raise whenever the same rubric and text make another prompt, here or in `prompt_tokens.py`: part of every engine's fingerprint, so
that no judgement of an older prompt is taken for one of today's."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Everything around the text that is asked about (rubric -> engine)."""

    style: str
    """`completion` or `chat`."""
    instructions: str
    label: str
    """What stands before a text."""
    answer_label: str
    """What stands before an answer in `completion` style, on a line of its own."""
    examples: tuple[tuple[str, str], ...]
    """Texts with their answers, shown in this order."""
    answers: tuple[str, ...]
    """The answers that count, as they follow the prompt: by the default weights the one whose probability is wanted, its opposite, and
    perhaps one that counts half."""
    weights: tuple[float, ...] = (1.0, 0.0, 0.5)
    """How much of each answer's share counts towards the probability that is wanted; more weights than answers are cut."""
    answer_prefix: str = ""
    """Begins the model's turn in `chat` style."""

    def completion_prompt(self) -> tuple[str, str]:
        """What stands before and after a text in `completion` style; the text follows the first piece after a space."""
        parts = [f"{self.instructions.strip()}\n\n"] if self.instructions.strip() else []
        for text, answer in self.examples:
            parts.append(f"{self.label} {text}\n{self.answer_label}{answer}\n\n")
        return "".join(parts) + self.label, f"\n{self.answer_label}"

    def chat_messages(self, text: str) -> list[dict[str, str]]:
        """The conversation that asks about `text` in `chat` style: instructions, examples as past turns, the question."""
        turns = [{"role": "system", "content": self.instructions.strip()}] if self.instructions.strip() else []
        for shown, answer in self.examples:
            turns.append({"role": "user", "content": f"{self.label} {shown}"})
            turns.append({"role": "assistant", "content": answer.strip()})
        return [*turns, {"role": "user", "content": f"{self.label} {text}"}]


def without_system_turn(conversation: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The instructions at the head of the first user turn instead, for models that know no system turn."""
    if conversation[0]["role"] != "system":
        return list(conversation)
    system, first, *rest = conversation
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]


MINOR = 0.3
"""What a minor kind counts: an item of nothing else stays below theta."""
MAX_PARTS = 16
"""Parts of one item that are asked about, the last ones: what came of a step stands last."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An item with its answer, shown to the model before the item that is asked."""

    item: str
    positive: bool
    kind: str = ""
    """The answer, where the rubric has kinds."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a model's bias, and theta where the rubric says `threshold: auto`, are found (`llm_server.service.calibration`)."""

    items: tuple[str, ...] = ()
    """Items that deserve the negative answer; none may be an example."""
    positives: tuple[str, ...] = ()
    """Items that deserve the positive answer, likewise. Without any, theta is what the likeliest of `items` gets, plus the margin."""
    negatives_per_positive: float = 1.0
    """How many items that deserve a no come to one that deserves a yes, by what would be paid for them: theta is chosen for that mixture."""
    margin: float = 0.25
    """Log-odds added to the highest of `items` where there are no `positives`."""


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """Two items with the answer which is better, shown to the model before the pair that is asked."""

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
    """The answer that neither is better, where the model may give one; it counts half for both."""
    first_label: str = "First:"
    """What stands before the item shown first."""
    second_label: str = "Second:"
    """What stands before the item shown second, on a line of its own."""
    answer_label: str = "Better:"
    """What stands before an answer, on a line of its own."""
    examples: tuple[PairExample, ...] = ()
    """Shown in this order."""
    item_examples: bool = False
    """Show the rubric's examples of single items before, under `first_label` and with their own answers."""
    items: tuple[Example, ...] = ()
    """Single items shown before in place of the rubric's: a positive one with the answer `second`, a negative one with `first`."""
    min_answer_mass: float = 0.1
    """Below this probability of the answers together, the model has not answered."""
    tie_margin: float = 0.0
    """A preference this near to 0.5 is a tie."""


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """Goal, instructions, examples and answers: everything that decides a judgement besides the model."""

    id: str
    """Name by which requests ask for it."""
    version: str
    """Changes whenever the answers may change."""
    goal: str
    """One sentence for people: what a positive answer means."""
    style: str
    """`completion` (one text; right for small models) or `chat` (the model's chat template; right for large instruct models)."""
    instructions: str
    """What the model reads first."""
    positive: str = ""
    """The positive answer as it follows the prompt, its leading space included; one token."""
    negative: str = ""
    """The negative answer, likewise."""
    positive_kinds: tuple[str, ...] = ()
    """In place of `positive` and `negative`: the answers each of which names one kind of positive item, and each example its own. An
    item's probability is that of all these together, once the model's bias towards each answer is taken off."""
    minor_kinds: tuple[str, ...] = ()
    """Answers that name what is better than nothing and less than what is sought: they rank such items between, and count `MINOR`."""
    negative_kinds: tuple[str, ...] = ()
    """The answers that name the kinds of negative items."""
    separator: str = ""
    """Where set, an item is a series of parts between which this stands, such as the messages of one step; each part is asked about
    by itself, and the item is what its likeliest part is."""
    item_label: str = "Message:"
    """What stands before an item."""
    answer_label: str = "Answer:"
    """What stands before an answer, on a line of its own."""
    examples: tuple[Example, ...] = ()
    """Shown in this order."""
    max_item_chars: int = 256
    """Longer items are cut."""
    min_answer_mass: float = 0.1
    """Below this probability of the two answers together, the model has not answered."""
    threshold: float | None = None
    """Theta: the probability above which an item is positive; None (in YAML `auto`) finds it by `calibration`."""
    calibration: Calibration = field(default_factory=Calibration)
    answer_prefix: str = ""
    """Begins the model's turn in `chat` style, for example to close the thinking of a model that thinks aloud."""
    pairs: PairRubric | None = None
    """How two items are compared; without it, only single items can be asked."""

    @cached_property
    def content_hash(self) -> str:
        """Hash of all that can change a judgement of a single item or theta: part of the store's key."""
        return _hash({key: value for key, value in dataclasses.asdict(self).items() if key != "pairs"})

    @cached_property
    def pairs_hash(self) -> str:
        """Hash of all that can change a judgement of a pair: part of the store's key; empty where pairs are not asked."""
        if self.pairs is None:
            return ""
        shared = {"style": self.style, "max_item_chars": self.max_item_chars, "answer_prefix": self.answer_prefix}
        shown = {"items_shown": self.question().examples} if self.pairs.item_examples else {}
        return _hash(shared | shown | dataclasses.asdict(self.pairs))

    def parts(self, item: bytes) -> list[bytes]:
        """What is asked about, each once, to judge `item`: its parts, or the item itself where it has none."""
        found = (
            dict.fromkeys(part.strip() for part in item.split(self.separator.encode()))
            if self.separator
            else {item: None}
        )
        return [part for part in found if part][-MAX_PARTS:] or [item]

    def item_text(self, item: bytes) -> str | None:
        """`item` as one printable line within the limit; None where it is not valid UTF-8 or nothing is left of it."""
        try:
            text = item.decode("utf-8")
        except UnicodeDecodeError:
            return None
        return self._one_line(text) or None

    def _one_line(self, text: str) -> str:
        # Categories C* and Z*: control and format characters, surrogates, every kind of space and line separator.
        printable = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
        return " ".join(printable.split())[: self.max_item_chars].rstrip()

    def pair_text(self, first: str, second: str) -> str:
        """The text that is asked about where two items, each as `item_text` made it, are compared in this order."""
        return f"{first}\n{self._pairs().second_label} {second}"

    def question(self) -> Question:
        """How a single item is asked; the positive answers come first."""
        positives, negatives = self.positive_kinds or (self.positive,), self.negative_kinds or (self.negative,)
        return Question(
            style=self.style,
            instructions=self.instructions,
            label=self.item_label,
            answer_label=self.answer_label,
            examples=tuple(
                (self._one_line(shown.item), shown.kind or (self.positive if shown.positive else self.negative))
                for shown in self.examples
            ),
            answers=positives + self.minor_kinds + negatives,
            weights=(1.0,) * len(positives) + (MINOR,) * len(self.minor_kinds) + (0.0,) * len(negatives),
            answer_prefix=self.answer_prefix,
        )

    def pair_question(self) -> Question:
        """How a pair is asked; the first answer is that the item shown first is better. ValueError without a `pairs` section."""
        pairs = self._pairs()
        words = {"first": pairs.first, "second": pairs.second, "tie": pairs.tie}
        items = tuple(
            (self._one_line(shown.item), pairs.second if shown.positive else pairs.first) for shown in pairs.items
        )
        if pairs.item_examples:
            items = self.question().examples
        return Question(
            style=self.style,
            instructions=pairs.instructions,
            label=pairs.first_label,
            answer_label=pairs.answer_label,
            examples=items
            + tuple(
                (self.pair_text(self._one_line(shown.first), self._one_line(shown.second)), words[shown.better])
                for shown in pairs.examples
            ),
            answers=tuple(word for word in words.values() if word),
            answer_prefix=self.answer_prefix,
        )

    def _pairs(self) -> PairRubric:
        if self.pairs is None:
            raise ValueError(f"rubric '{self.id}' has no `pairs` section: it cannot compare two items")
        return self.pairs


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
