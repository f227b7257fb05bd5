"""`PromptTokens`: a question in the tokens of one model.

Invariant: the tokens are those of the whole prompt, also where a text and what follows it share one (Llama 3 and Qwen
have one for a full stop and the end of its line). Yet a text is tokenised as plain text, so it cannot write a special
token, and the tokens before it are the same for every text. Each answer is one token in its context.

A text is tokenised with the rest of its line, up to the next special token: no token spans a special one, and PROBES
show whether any spans the beginning of the line. A question without answers is a brief's: its answer is free text.
"""

import math
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from configs.errors import one_line
from llm_server.annotation import Score
from llm_server.engines.answers import NO_ANSWER
from llm_server.engines.engine import PROBE
from llm_server.rubrics.question import Question, without_system_turn

TEXT_MARK = "\u2063text\u2063"
"""Placeholder for the text while the chat template is applied; texts cannot contain it (it has a format character)."""
MAX_TEXT_TOKENS = 2048
PROBES = (PROBE, "x", "12 gold pieces", '"Hello!"', "$ - 5", "-", "(Really?)", "Élan: 7,", "y n q?")
"""Texts that cover the ways in which texts begin and end."""


class PromptTokens:
    """A question tokenised by `tokenizer` (a Hugging Face one); ValueError where question and model do not fit."""

    def __init__(
        self, tokenizer: Any, question: Question, *, model: str, context: int, max_text_tokens: int = MAX_TEXT_TOKENS
    ) -> None:
        self._tokenizer, self._model = tokenizer, model
        self.special = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)
        """Tokens that no text gives."""
        before, after = self._prompt(question)
        if question.style == "completion" or before.endswith(question.label):
            before += " "
        self._answer = question.answers[0] if question.answers else ""
        self._before_answer = -1 if question.answers else None
        self.suffix: list[int] = self._with_special(after + self._answer)[: self._before_answer]
        """Tokens after a text that shares no token with what follows it."""
        whole = [self._with_special(f"{before}{text}{after}{self._answer}")[: self._before_answer] for text in PROBES]
        self._find_line(before, after, whole)
        self.prefix: list[int] = self._begun(whole[0][: len(whole[0]) - len(self._read(PROBES[0]) or [])])
        """Tokens before every text."""
        self.answers: list[int] = [
            self._answer_token(word, f"{before}{PROBES[0]}{after}", whole[0]) for word in question.answers
        ]
        """One token per answer, in the order of `Question.answers`."""
        self.weights = question.weights
        """See `Question.weights`."""
        room = context - len(self.prefix) - len(self.suffix) - 1
        if room < 64:
            what = "rubric" if question.answers else "brief"
            raise ValueError(
                f"the {what} takes {len(self.prefix)} of the {context} tokens that model '{model}' can read: use fewer"
                " examples"
            )
        self._max_tokens = min(room, max_text_tokens) + len(self.suffix)

    def tokens(self, text: str) -> list[int] | None:
        """Tokens of a text, truncated if long, and of what follows it; None where even plain text gives a special
        token, or where truncation would remove a line, such as a pair's second item."""
        return self.all_tokens([text])[0]

    def all_tokens(self, texts: Sequence[str]) -> list[list[int] | None]:
        """`tokens` of each text; in one call, which takes half the time of a call for each."""
        lines = self._as_plain([f"{self._before}{text}{self._after}" for text in texts]) if texts else []
        return [self._truncated(text, self._after_begin(line)) for text, line in zip(texts, lines, strict=True)]

    def _truncated(self, text: str, tokens: list[int] | None) -> list[int] | None:
        while tokens is not None and len(tokens) > self._max_tokens:
            if "\n" in text:
                return None
            text = text[: len(text) * self._max_tokens // len(tokens)].rstrip()
            tokens = self._read(text)
        return tokens

    def _find_line(self, before: str, after: str, whole: Sequence[list[int]]) -> None:
        """Find how much of `before` and `after` to tokenise with a text to get the tokens of the `whole` prompts."""
        special = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        special |= set(self._tokenizer.all_special_tokens)
        begin = max((end + len(token) for token in special if (end := before.rfind(token)) >= 0), default=0)
        ends = [end for token in special if (end := after.find(token)) >= 0]
        self._line_end = None if ends else self._before_answer
        self._rest = self._with_special(after[min(ends) :] + self._answer)[: self._before_answer] if ends else []
        self._after = after[: min(ends)] if ends else after + self._answer
        for start in (max(begin, before.rfind("\n") + 1), begin):
            self._before, self._begins = before[start:], []
            # Without the space before a text: whether that is a token of its own depends on the text.
            lines = self._as_plain([self._before.rstrip(), *(f"{self._before}{text}{self._after}" for text in PROBES)])
            places = zip(*lines, strict=False)
            self._begins = [tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, places)]
            items = [self._read(text) or [] for text in PROBES]
            beginnings = [tokens[: len(tokens) - len(item)] for tokens, item in zip(whole, items, strict=True)]
            if all(
                item and tokens[len(tokens) - len(item) :] == item and beginning == beginnings[0]
                for tokens, item, beginning in zip(whole, items, beginnings, strict=True)
            ):
                return
        raise ValueError(
            f"model '{self._model}' reads the same line differently within a prompt and alone: choose another model"
        )

    def _as_plain(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _read(self, text: str) -> list[int] | None:
        return self._after_begin(self._as_plain([f"{self._before}{text}{self._after}"])[0])

    def _after_begin(self, line: list[int]) -> list[int] | None:
        """Tokens of a text and of what follows it, from those of its line; None where it changes the tokens before it
        or has a special one."""
        begins, tokens = line[: len(self._begins)], line[len(self._begins) :]
        if begins != self._begins or self.special.intersection(tokens):
            return None
        return tokens[: self._line_end] + self._rest

    def _prompt(self, question: Question) -> tuple[str, str]:
        if question.style == "completion":
            return question.completion_prompt()
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"the rubric has style chat but model '{self._model}' has no chat template: use a completion rubric"
            )
        conversation = question.chat_messages(TEXT_MARK)
        try:
            whole = self._in_template(conversation)
        except Exception:  # some templates refuse a system turn, by any kind of exception
            try:
                whole = self._in_template(without_system_turn(conversation))
            except Exception as error:
                raise ValueError(
                    f"the chat template of model '{self._model}' refuses the rubric ({one_line(error, 200)}): use a"
                    " completion rubric"
                ) from error
        before, _, after = whole.rpartition(TEXT_MARK)
        return before.rstrip(" "), after + question.answer_prefix

    def _in_template(self, conversation: Sequence[dict[str, str]]) -> str:
        return self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)

    def _begun(self, tokens: list[int]) -> list[int]:
        """`tokens` after the model's BOS token, if its tokenizer adds one and the chat template has not."""
        begin = self._tokenizer("a")["input_ids"][:1]
        return tokens if begin != [self._tokenizer.bos_token_id] or tokens[:1] == begin else begin + tokens

    def _with_special(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _answer_token(self, word: str, prompt: str, tokens: list[int]) -> int:
        """The one token of an answer that follows the `tokens` of `prompt`; ValueError where it is several."""
        answered, alone = self._with_special(prompt + word), self._with_special(prompt)
        if answered[:-1] != tokens or self._tokenizer.decode(tokens) != self._tokenizer.decode(alone):
            single = answered[len(alone) :] if answered[: len(alone)] == alone else answered[-2:]
            raise ValueError(
                f"the answer '{word}' is {len(single)} tokens for model '{self._model}' where it stands"
                f" ({[self._tokenizer.decode([t]) for t in single]}): choose a word that is one token, mind its leading"
                " space"
            )
        return answered[-1]


def score_batches(
    sequences: Sequence[list[int] | None],
    score: Callable[[list[list[int]]], list[Score]],
    batch_size: int,
    max_tokens: float = math.inf,
) -> list[Score]:
    """One score per sequence, NO_ANSWER for None; `score` gets at most `batch_size` sequences and `max_tokens`
    tokens."""
    batches: list[list[int]] = [[]]
    num_tokens = 0
    for index, sequence in enumerate(sequences):
        if sequence is None:
            continue
        if batches[-1] and (len(batches[-1]) == batch_size or num_tokens + len(sequence) > max_tokens):
            batches.append([])
            num_tokens = 0
        batches[-1].append(index)
        num_tokens += len(sequence)
    scores = [NO_ANSWER] * len(sequences)
    for batch in filter(None, batches):
        for index, found in zip(batch, score([sequences[index] or [] for index in batch]), strict=True):
            scores[index] = found
    return scores
