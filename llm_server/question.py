"""`Question`: one way of asking a language model about a text, as a completion to continue or as a conversation.

Invariant: the text that is asked about stands between two fixed pieces of prompt, the examples look exactly like it, and the
answers that count are single words in a fixed place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
