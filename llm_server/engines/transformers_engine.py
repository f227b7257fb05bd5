"""The transformers engine: any causal language model of Hugging Face, read by the log-probabilities of the answers'
tokens.

Invariant: one forward pass over an item's own tokens gives its answer, and that answer is the one a plain forward pass
over the whole prompt gives (checked when the engine is built).

The rubric's part of the prompt is computed once. The items of a pass follow that prefix as one sequence, a tree of
tokens in which a beginning that several items share ("You see here a") occurs once: positions count from the prefix,
and the attention mask lets a token see the prefix and the tokens before it in its own items. So nothing is copied for
each item, and there is no padding.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xxhash
from transformers import AutoModelForCausalLM, DynamicCache

from configs.annotation_schema import ServiceConfig
from configs.devices import resolve_device
from llm_server.annotation import Score, Written
from llm_server.engines.devices import layer_of, resolve_dtype
from llm_server.engines.engine import PROBE
from llm_server.engines.models import (
    bundled_model_folder,
    load_tokenizer,
    load_whole,
    loading,
    model_source,
    unused_advice,
)
from llm_server.engines.prompt_tokens import PromptTokens, score_batches
from llm_server.rubrics.rubric import PROMPT_VERSION, Rubric
from llm_server.writing.brief import Brief
from llm_server.writing.sampling import Sampler, Turns

LOG = logging.getLogger(__name__)
MAX_PACK_TOKENS = 2048
"""Item tokens in one forward pass: bounds the attention mask."""
SECOND_PROBE = "You see here a newt."


class TransformersEngine:
    """Scores texts with one model under one rubric; ValueError at construction where model and rubric do not fit."""

    judges = writes = needs_calibration = True

    def __init__(self, config: ServiceConfig, rubric: Rubric):
        self._device = resolve_device(config.device, "service.device")
        self._batch_size = config.batch_size
        self._model, self._tokenizer, context, dtype = _load(config.model, config.dtype, self._device)
        self.model = config.model
        self.name = f"transformers/{self._device.type}/{dtype}"
        self.fingerprint = _fingerprint(self._model, self._tokenizer, self.name)
        self._head = self._model.get_output_embeddings()
        self._prompt = partial(PromptTokens, self._tokenizer, model=self.model, context=context)
        self._turns = Turns()
        self._make_sampler = partial(
            Sampler, self._model, self._tokenizer, name=self.model, context=context, turns=self._turns
        )
        self._take(rubric)

    def under(self, rubric: Rubric) -> "TransformersEngine":
        """The same weights under another rubric, with a shared prefix of its own."""
        other = copy.copy(self)
        other._take(rubric)
        return other

    def _take(self, rubric: Rubric) -> None:
        self._sampler = self._make_sampler()  # its own, because it is closed with this engine
        self._rubric = rubric
        self._single = self._prepared(self._prompt(rubric.question()))
        self._pair_prompt = self._prompt(rubric.pair_question()) if rubric.pairs else None
        self._pair: _PreparedPrompt | None = None

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, in their order; NaN for a text that cannot be asked as plain text."""
        return self._score(self._single, texts)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """One score per pair as it is shown; ValueError where the rubric has no pairs."""
        prompt = self._pair_prompt or self._prompt(self._rubric.pair_question())  # the latter raises
        self._pair = self._pair or self._prepared(prompt)  # prepared late: it takes a second, and few runs need it
        return self._score(self._pair, [self._rubric.pair_text(first, second) for first, second in pairs])

    def write(self, brief: Brief, text: str, seeds: Sequence[int]) -> list[Written]:
        """See `Engine.write`; RuntimeError once the engine is closed."""
        question = brief.question(self._rubric.style, self._rubric.answer_prefix)
        return self._sampler.write(brief, question, text, seeds)

    def close(self) -> None:
        """End a `write` within a slice; nothing outside this process is to be freed."""
        self._sampler.close()

    def _prepared(self, prompt: PromptTokens) -> "_PreparedPrompt":
        """The prompt with its prefix computed. A plain pass over prefix and probe shows whether packed answers are
        right: some models process their logits afterwards or ignore a packed mask, and would silently answer wrongly.
        ValueError for those."""
        first = prompt.tokens(PROBE) or []
        cache = DynamicCache()
        with torch.no_grad(), self._turns:
            ids = torch.tensor([prompt.prefix + first], device=self._device)
            last = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits = last.logits[:, -1].float()
        cache.crop(-len(first))
        prepared = _PreparedPrompt(prompt, cache, self._head.weight[prompt.answers].float())
        plain = _scores(logits, prompt.answers, logits[:, prompt.answers], prompt.weights)[0]
        packed = self._in_turn(prepared, [prompt.tokens(SECOND_PROBE) or [], first])[1]
        difference = max(abs(a - b) for a, b in zip(packed[:2], plain[:2], strict=True))
        if not difference < (0.1 if self._model.dtype is torch.bfloat16 else 0.001):  # NaN fails too
            raise ValueError(
                f"model '{self.model}' does not work with a shared prefix (packed {packed}, plain {plain}): "
                "choose a plain decoder-only transformer without logit post-processing, or dtype float32"
            )
        return prepared

    def _score(self, prepared: "_PreparedPrompt", texts: Sequence[str]) -> list[Score]:
        sequences = prepared.prompt.all_tokens(texts)
        return score_batches(sequences, partial(self._in_turn, prepared), self._batch_size, MAX_PACK_TOKENS)

    def _in_turn(self, prepared: "_PreparedPrompt", sequences: Sequence[list[int]]) -> list[Score]:
        with self._turns:
            return self._score_pack(prepared, sequences)

    @torch.no_grad()
    def _score_pack(self, prepared: "_PreparedPrompt", sequences: Sequence[list[int]]) -> list[Score]:
        prompt = prepared.prompt
        num_prefix = len(prompt.prefix)
        tree = _TokenTree(sequences)
        positions = torch.from_numpy(tree.depths) + num_prefix
        visible = torch.ones(len(tree.tokens), num_prefix + len(tree.tokens), dtype=torch.bool)  # [Q, P+Q]
        visible[:, num_prefix:] = torch.from_numpy(tree.sees)
        dtype = self._model.dtype
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        ids, ends = torch.tensor(tree.tokens), torch.tensor(tree.ends)
        hidden = self._model.base_model(
            input_ids=ids[None].to(self._device),
            attention_mask=mask[None, None].to(self._device),
            position_ids=positions[None].to(self._device),
            past_key_values=copy.deepcopy(prepared.prefix_cache),
            use_cache=True,
        ).last_hidden_state[0, ends.to(self._device)]  # [N, H]
        logits = self._head(hidden).float()  # [N, V]
        # bf16 logits lie on a grid of 1/8, too coarse to rank by: those of the answers are computed again in fp32.
        return _scores(logits, prompt.answers, hidden.float() @ prepared.answer_rows.T, prompt.weights)


@dataclass(frozen=True, slots=True)
class _PreparedPrompt:
    """A prompt whose prefix is computed."""

    prompt: PromptTokens
    prefix_cache: DynamicCache
    answer_rows: torch.Tensor
    """[A, H] f32: the rows of the output matrix that belong to the answers."""


class _TokenTree:
    """Q tokens for all sequences, in which shared beginnings occur once."""

    def __init__(self, sequences: Sequence[list[int]]) -> None:
        places: dict[tuple[int, int], int] = {}  # by the place of the token before it, and the token
        self.ends: list[int] = []
        """Index of each sequence's last token."""
        for sequence in sequences:
            place = -1
            for token in sequence:
                place = places.setdefault((place, token), len(places))
            self.ends.append(place)
        self.tokens = [token for _, token in places]
        self.sees = np.eye(len(self.tokens), dtype=bool)
        """[Q, Q] bool: which tokens each token sees, itself and those before it in its sequences."""
        for place, (parent, _) in enumerate(places):
            if parent >= 0:
                self.sees[place] |= self.sees[parent]
        self.depths = self.sees.sum(1) - 1
        """[Q] i64: how many tokens precede each."""


def _scores(
    logits: torch.Tensor, answers: list[int], fine_logits: torch.Tensor, weights: Sequence[float]
) -> list[Score]:
    """Scores from all logits [N, V], the answers' logits [N, A] in full precision, and the answers' weights."""
    shares = fine_logits.softmax(-1)
    probabilities = shares @ torch.tensor(weights[: len(answers)], dtype=shares.dtype, device=shares.device)
    mass = logits.softmax(-1)[:, answers].sum(-1)
    return [
        Score(p, min(m, 1.0), tuple(s))
        for p, m, s in zip(probabilities.tolist(), mass.tolist(), shares.tolist(), strict=True)
    ]


def _load(model: str, dtype: str, device: torch.device) -> tuple[Any, Any, int, str]:
    """Model, tokenizer, the most tokens that the model reads, and the resolved dtype."""
    source = model_source(str(bundled_model_folder()) if model == "smollm2" else model)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # without a network it logs each of a dozen attempts
    tokenizer, settings, context = load_tokenizer(source, model)
    with loading(f"model '{model}'"):
        dtype = resolve_dtype(dtype, device, layer_of(settings))
        loaded, unused = load_whole(AutoModelForCausalLM, source, model, dtype=getattr(torch, dtype))
        if unused:
            LOG.warning("model '%s': %s", model, unused_advice(unused))
        return loaded.to(device).eval(), tokenizer, context, dtype


def _fingerprint(model: Any, tokenizer: Any, engine: str) -> str:
    """Hash of everything that decides an answer; weights enter by shape and 4096 evenly spaced values each (moving all
    weights of even a small model off a GPU takes longer than loading it)."""
    digest = xxhash.xxh3_128(f"{engine}/prompt {PROMPT_VERSION}".encode())
    for name, weights in model.state_dict().items():
        sample = weights.flatten()[:: max(1, weights.numel() // 4096)].float().cpu().numpy()
        digest.update(f"{name}{tuple(weights.shape)}".encode())
        digest.update(sample.tobytes())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update((tokenizer.chat_template or "").encode())
    return digest.hexdigest()
