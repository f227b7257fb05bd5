"""`PromptTokens`: a question in the tokens of one model.

Invariant: a text is tokenised by itself and as plain text, so no text can write a special token, and the tokens before and
after it are the same for every text; each answer is one token where it stands.
"""

from collections.abc import Sequence
from typing import Any

from llm_server.question import Question

TEXT_MARK = "\u2063text\u2063"
"""Stands for the text while the chat template is applied; texts cannot contain it (it is a format character)."""


class PromptTokens:
    """A question tokenised by `tokenizer` (a Hugging Face one); ValueError where question and model do not fit."""

    def __init__(self, tokenizer: Any, question: Question, *, model: str, max_text_tokens: int, context: int) -> None:
        self._tokenizer, self._model = tokenizer, model
        # Only a template's own text may contain special tokens; a text's may not.
        self._special = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)
        before, after = self._prompt(question)
        self.prefix: list[int] = self._begun(self._plain(before))
        """Tokens before every text."""
        self.suffix: list[int] = self._plain(after + question.answers[0])[:-1]
        """Tokens after every text, split as they are where an answer follows them."""
        self.answers: list[int] = [self._answer_token(word, after) for word in question.answers]
        """One token per answer, in the order of `Question.answers`."""
        self.weights = question.weights
        """See `Question.weights`."""
        self._lead = " " if question.style == "completion" or before.endswith(question.label) else ""
        room = context - len(self.prefix) - len(self.suffix) - 1
        if room < 64:
            raise ValueError(
                f"the rubric takes {len(self.prefix)} of the {context} tokens that model '{model}' can read: use fewer examples"
            )
        self._max_text_tokens = min(room, max_text_tokens)

    def tokens(self, text: str) -> list[int] | None:
        """Tokens of a text and of what follows it, a long one cut; None where plain text gives a special token all the same, or where
        the cut would take a line away, such as a pair's second item."""
        tokens = self._tokenizer(self._lead + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if self._special.intersection(tokens) or (len(tokens) > self._max_text_tokens and "\n" in text):
            return None
        return tokens[: self._max_text_tokens] + self.suffix

    def _prompt(self, question: Question) -> tuple[str, str]:
        if question.style == "completion":
            return question.completion_prompt()
        if not self._tokenizer.chat_template:
            raise ValueError(f"the rubric has style chat but model '{self._model}' has no chat template: use a completion rubric")
        conversation = question.chat_messages(TEXT_MARK)
        try:
            whole = self._in_template(conversation)
        except Exception:  # some templates refuse a system turn, with whatever error they like
            try:
                whole = self._in_template(_without_system_turn(conversation))
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"the chat template of model '{self._model}' refuses the rubric ({reason}): use a completion rubric"
                ) from error
        before, _, after = whole.rpartition(TEXT_MARK)
        return before.rstrip(" "), after + question.answer_prefix

    def _in_template(self, conversation: Sequence[dict[str, str]]) -> str:
        return self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)

    def _begun(self, tokens: list[int]) -> list[int]:
        """With the token that begins every text of this model, where it has one and the chat template has not written it."""
        begin = self._tokenizer("a")["input_ids"][:1]
        return tokens if begin != [self._tokenizer.bos_token_id] or tokens[:1] == begin else begin + tokens

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _answer_token(self, word: str, after: str) -> int:
        """The answer's one token where it stands; ValueError where it is more than one there."""
        tokens = self._plain(after + word)
        if tokens[:-1] != self.suffix or self._tokenizer.decode(self.suffix) != self._tokenizer.decode(self._plain(after)):
            alone = self._plain(after)
            single = tokens[len(alone) :] if tokens[: len(alone)] == alone else tokens
            raise ValueError(
                f"the answer '{word}' is {len(single)} tokens for model '{self._model}' where it stands "
                f"({[self._tokenizer.decode([t]) for t in single]}): choose a word that is one token, mind its leading space"
            )
        return tokens[-1]


def _without_system_turn(conversation: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The instructions at the head of the first user turn instead."""
    if conversation[0]["role"] != "system":
        return list(conversation)
    system, first, *rest = conversation
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]
