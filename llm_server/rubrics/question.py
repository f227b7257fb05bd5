"""`Question`: the prompt template around one text, as a completion to continue or as a conversation.

Invariant: the text stands between two fixed pieces of prompt; examples have exactly its form, and answers are single
words in a fixed place.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Question:
    """The prompt template around one text (rubric -> engine)."""

    style: str
    """`completion` or `chat`."""
    instructions: str
    label: str
    """Precedes a text."""
    answer_label: str
    """Precedes an answer in `completion` style, on a line of its own."""
    examples: tuple[tuple[str, str], ...]
    """Texts with their answers, shown in this order."""
    answers: tuple[str, ...]
    """The answers as they follow the prompt; with the default weights a positive one, a negative one, and a tie."""
    weights: tuple[float, ...] = (1.0, 0.0, 0.5)
    """The weight of each answer in the item's probability; surplus weights are ignored."""
    answer_prefix: str = ""
    """Begins the model's turn in `chat` style."""

    def completion_prompt(self) -> tuple[str, str]:
        """The prompt before and after a text in `completion` style; a space separates the first piece from the text."""
        parts = [f"{self.instructions.strip()}\n\n"] if self.instructions.strip() else []
        for text, answer in self.examples:
            parts.append(f"{self.label} {text}\n{self.answer_label}{answer}\n\n")
        return "".join(parts) + self.label, f"\n{self.answer_label}"

    def chat_messages(self, text: str) -> list[dict[str, str]]:
        """The conversation that asks about `text` in `chat` style: instructions, examples as past turns, question."""
        turns = [{"role": "system", "content": self.instructions.strip()}] if self.instructions.strip() else []
        for shown, answer in self.examples:
            turns.append({"role": "user", "content": f"{self.label} {shown}"})
            turns.append({"role": "assistant", "content": answer.strip()})
        return [*turns, {"role": "user", "content": f"{self.label} {text}"}]


def without_system_turn(conversation: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation with the instructions in the first user turn, for models that support no system turn."""
    if conversation[0]["role"] != "system":
        return list(conversation)
    system, first, *rest = conversation
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def plain_line(text: str, max_chars: int) -> str:
    """`text` as one printable line of at most `max_chars`, whose words single spaces separate; may be empty."""
    # Categories C* and Z*: control and format characters, surrogates, every kind of space and line separator.
    if not (text.isascii() and text.isprintable()):  # printable ASCII has none of them but the space
        text = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
    return " ".join(text.split())[:max_chars].rstrip()
