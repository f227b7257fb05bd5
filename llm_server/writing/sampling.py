"""`Sampler`: a transformers model writes, token by token, beside the judgements that it is asked for.

Invariant: a writing is a function of model, prompt and seed: its random numbers are its own, one per token, and the
others that are written with it enter its logits only by rounding. The model is used in turns, in the order of arrival:
a slice of a writing, at most `SLICE_TOKENS` tokens and after `SLICE_S` no further one, then whatever judgements wait.
"""

import copy
import threading
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from llm_server.annotation import Written
from llm_server.engines.prompt_tokens import PromptTokens
from llm_server.rubrics.question import Question
from llm_server.writing.answer_text import until_stop
from llm_server.writing.brief import Brief

SLICE_TOKENS = 16
SLICE_S = 0.25
BATCH_SIZE = 8
"""Writings at once: on a CPU eight take little longer than one, because reading the weights takes the time."""


class Turns:
    """A lock that threads get in the order in which they ask for it, so that none waits for two turns of another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._now = 0

    def __enter__(self) -> None:
        with self._changed:
            number, self._next = self._next, self._next + 1
            self._changed.wait_for(lambda: self._now == number)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._now += 1
            self._changed.notify_all()


@dataclass(eq=False, slots=True)
class _Text:
    """One writing that is being written."""

    random: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    written: Written | None = None


class Sampler:
    """Writes with one loaded model; used by one thread at a time, beside others that use the model in `turns`."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str, context: int, turns: Turns) -> None:
        self._model, self._tokenizer, self._name, self._context = model, tokenizer, name, context
        self._turns = turns
        self._begun: tuple[Question, PromptTokens, DynamicCache] | None = None  # of the latest brief
        self._closed = threading.Event()

    def write(self, brief: Brief, question: Question, text: str, seeds: Sequence[int]) -> list[Written]:
        """As `Engine.write`, with the prompt of `question`; RuntimeError once it is closed."""
        prompt, prefix = self._prepared(brief, question)
        tokens = prompt.tokens(text)
        if tokens is None:
            return [Written("", 0)] * len(seeds)
        stops, written = brief.stops(question.style), []
        for start in range(0, len(seeds), BATCH_SIZE):
            texts = [_Text(np.random.default_rng(seed)) for seed in seeds[start : start + BATCH_SIZE]]
            self._write(brief, stops, prompt.special, copy.deepcopy(prefix), tokens, texts)
            written += [text.written or Written("", 0) for text in texts]
        return written

    def close(self) -> None:
        """End a writing after its present slice."""
        self._closed.set()

    def _prepared(self, brief: Brief, question: Question) -> tuple[PromptTokens, DynamicCache]:
        """The brief's prompt with its prefix computed; that of one brief is kept."""
        if self._begun is None or self._begun[0] != question:
            room = self._context - brief.max_tokens
            prompt = PromptTokens(self._tokenizer, question, model=self._name, context=room, max_text_tokens=room)
            prefix = DynamicCache()
            with self._turns:
                self._logits([prompt.prefix], prefix)
            self._begun = question, prompt, prefix
        return self._begun[1:]

    def _write(
        self,
        brief: Brief,
        stops: Sequence[str],
        special: Set[int],
        cache: DynamicCache,
        prompt: Sequence[int],
        texts: list[_Text],
    ) -> None:
        """Write all of `texts` after `prompt`, which follows what `cache` holds; a `special` token ends one."""
        with self._turns:
            logits = self._logits([prompt], cache)
        cache.batch_repeat_interleave(len(texts))
        logits = logits.expand(len(texts), -1)
        while True:
            if self._closed.is_set():
                raise RuntimeError("closed before everything was written")
            with self._turns:
                began = time.monotonic()
                for _ in range(SLICE_TOKENS):
                    for text, token in zip(texts, _drawn(logits, texts, brief.temperature), strict=True):
                        self._take(text, token, brief, stops, special)
                    going = [place for place, text in enumerate(texts) if text.written is None]
                    if not going:
                        return
                    if len(going) < len(texts):
                        cache.batch_select_indices(torch.tensor(going, device=logits.device))
                        texts = [texts[place] for place in going]
                    logits = self._logits([text.tokens[-1:] for text in texts], cache)
                    if time.monotonic() - began > SLICE_S:
                        break

    def _take(self, text: _Text, token: int, brief: Brief, stops: Sequence[str], special: Set[int]) -> None:
        """Append `token`; a special one, one of `stops` or the limit ends the text."""
        is_over = token in special
        text.tokens += [] if is_over else [token]
        said, has_stopped = until_stop(self._tokenizer.decode(text.tokens), stops)
        if is_over or has_stopped or len(text.tokens) == brief.max_tokens:
            text.written = Written(said, len(text.tokens), is_cut=not (is_over or has_stopped))

    @torch.no_grad()
    def _logits(self, tokens: Sequence[Sequence[int]], cache: DynamicCache) -> torch.Tensor:
        """[N, V] f32: the logits after the last token of each sequence; `cache` grows by the sequences."""
        ids = torch.tensor(tokens, device=self._model.device)
        found = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        return found.float()


def _drawn(logits: torch.Tensor, texts: Sequence[_Text], temperature: float) -> list[int]:
    """The next token of each text, where its next random number falls into the cumulated probabilities: so a rounding
    error moves the choice only where the number lies that near to an edge."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    ends = (logits / temperature).softmax(-1).double().cumsum(-1)  # [N, V]
    numbers = torch.tensor([text.random.random() for text in texts], dtype=ends.dtype, device=ends.device)
    places = torch.searchsorted(ends, (numbers * ends[:, -1])[:, None], right=True)[:, 0]
    return places.clamp_(max=logits.shape[1] - 1).tolist()
