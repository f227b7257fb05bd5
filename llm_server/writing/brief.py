"""`Brief`: what a language model is asked to write, the counterpart of a rubric; and `WriterClient`, whom to ask.

Invariant: whoever asks gives fields, never a prompt. A field is plain text between fixed pieces of prompt: its lines
cannot begin like one of those, and are bounded in length and number, so no text changes the prompt's structure.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from llm_server.annotation import Writing
from llm_server.rubrics.question import Question, plain_line

BULLET = "\n-"
"""Begins each line of a field that may have several."""
INDENTED = "\n   "
"""Begins each line of a field of code."""


@dataclass(frozen=True, kw_only=True)
class BriefField:
    """A text that whoever asks must give."""

    name: str
    """Its name in requests."""
    label: str
    """Precedes it in the prompt."""
    max_lines: int = 1
    """Lines that it may have, separated by line feeds; more are left out. With 1 it is made one line."""
    max_chars: int = 256
    """Longer lines are cut."""
    optional: bool = False
    """It may be left out, or empty."""
    is_code: bool = False
    """Its lines keep their indentation, and are shown below the label without bullets."""

    @property
    def shown_label(self) -> str:
        """What precedes its text, with the bullet of a first line."""
        return self.label + self._line_start

    @property
    def _line_start(self) -> str:
        return INDENTED if self.is_code else BULLET if self.max_lines > 1 else ""

    def text(self, value: bytes) -> str | None:
        """Its printable lines within the limits; None for what is not UTF-8 or has nothing printable."""
        try:
            given = value.decode("utf-8")
        except UnicodeDecodeError:
            return None
        lines = [self._line(line) for line in (given.split("\n") if self.max_lines > 1 else [given])]
        return f"{self._line_start} ".join([line for line in lines if line][: self.max_lines]) or None

    def _line(self, given: str) -> str:
        line = plain_line(given, self.max_chars)
        return " " * (len(given) - len(given.lstrip(" "))) + line if self.is_code and line else line


@dataclass(frozen=True, kw_only=True)
class BriefExample:
    """Fields with the answer to them, shown to the model before the question."""

    given: tuple[str, ...]
    """The fields in the brief's order; empty for an optional one that is left out."""
    answer: str
    """One line."""


@dataclass(frozen=True, kw_only=True)
class Brief:
    """Instructions, fields, examples and the kind of answer: everything besides the model that decides a writing."""

    id: str
    """The name in requests."""
    version: str
    """Changes whenever the writings may change."""
    instructions: str
    """What a chat model reads first. In `completion` style examples say more, and a small model writes worse after
    instructions."""
    fields: tuple[BriefField, ...]
    """In the order of the prompt; the first is not optional."""
    answer: str
    """The kind of answer, which says how it is parsed: `lines`, `sentence` or `program`
    (`llm_server/writing/answer_text.py`)."""
    answer_label: str
    """Precedes an answer, on a line of its own."""
    examples: tuple[BriefExample, ...]
    """Shown in this order."""
    max_tokens: int = 48
    """Tokens of one answer; what it had not finished by then is left out."""
    temperature: float = 0.6
    """Of sampling; 0 takes the likeliest token."""
    max_lines: int = 8
    """Entries of an answer of the kind `lines`; more are left out. A `program` with more lines is no answer."""
    max_line_chars: int = 80
    """Longer entries are left out. A `program` with a longer line is no answer."""

    @cached_property
    def content_hash(self) -> str:
        """Hash of everything that can change a writing; part of the store's key."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def check(self, fields: Mapping[str, bytes], max_bytes: int) -> None:
        """ValueError unless `fields` are those of this brief, each of at most `max_bytes` for every line it may
        have."""
        known = {field.name: field for field in self.fields}
        if unknown := [name for name in fields if name not in known]:
            shown = repr(unknown[0][:100])
            raise ValueError(f"brief '{self.id}' has no field {shown}: give {', '.join(known)}")
        for field in self.fields:
            size, most = len(fields.get(field.name, b"")), max_bytes * field.max_lines
            if not size and not field.optional:
                raise ValueError(f"brief '{self.id}' needs the field {field.name!r}, which is missing or empty")
            if size > most:
                raise ValueError(f"field {field.name!r} has {size} bytes, at most {most} are taken: shorten it")

    def text(self, fields: Mapping[str, bytes]) -> str | None:
        """The text that asks about `fields`, as they follow the first one's label; None where one is no text."""
        shown: list[str] = []
        for field in self.fields:
            value = fields.get(field.name, b"")
            if field.optional and not value:
                continue
            text = field.text(value)
            if text is None:
                return None
            shown.append(f"{field.shown_label} {text}" if shown else text)
        return "\n".join(shown)

    def stops(self, style: str) -> tuple[str, ...]:
        """What ends an answer: in `completion` style its line, for a program an empty one, after which a small model
        begins another example."""
        if style != "completion":
            return ()
        return ("\n\n",) if self.answer == "program" else ("\n",)

    def question(self, style: str, answer_prefix: str = "") -> Question:
        """The prompt around `text`: its examples as past answers, in the `style`, and with the `answer_prefix`, of the
        rubric that is served for the same model."""
        names = [field.name for field in self.fields]
        given = [dict(zip(names, map(str.encode, shown.given), strict=True)) for shown in self.examples]
        return Question(
            style=style,
            instructions=self.instructions if style == "chat" else "",
            label=self.fields[0].shown_label,
            answer_label=self.answer_label,
            examples=tuple(
                (self.text(fields) or "", f" {shown.answer}")
                for fields, shown in zip(given, self.examples, strict=True)
            ),
            answers=(),
            answer_prefix=answer_prefix,
        )


class WriterClient(Protocol):
    """The method of `llm_server.client.AnnotationClient` by which something is written."""

    def write(self, brief: Brief, fields: Mapping[str, bytes], num: int, seed: int) -> list[Writing]:
        """`num` writings about `fields`, which depend on `seed` (in 0 to 2^64 - 1); with the same seed the first ones
        are the same whatever `num`. Raises ServiceUnavailable or AnnotationRefused."""
