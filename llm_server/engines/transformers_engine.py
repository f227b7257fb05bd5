"""The transformers engine: any causal language model of Hugging Face, read by the log-probabilities of two answer tokens.

Invariant: one forward pass over an item's own tokens gives its answer, and that answer is the one a plain forward pass over
the whole prompt gives (checked when the engine is built).

The rubric's part of the prompt is computed once. The items of a pass stand behind that prefix as one sequence, a tree of tokens in
which what several of them begin with stands once ("You see here a"): positions count from the prefix, and the attention mask lets a
token see the prefix and what stands before it in its own items. So nothing is copied for each item, and there is no padding.
"""

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from configs.annotation_schema import ServiceConfig
from configs.devices import resolve_device
from configs.errors import named
from llm_server.annotation import Score
from llm_server.engines.devices import layer_of, resolve_dtype
from llm_server.engines.models import (
    MODEL_WANTED,
    IncompleteWeights,
    bundled_model_folder,
    load_whole,
    model_source,
    unused_advice,
)
from llm_server.engines.prompt_tokens import PromptTokens
from llm_server.rubrics.rubric import PROMPT_VERSION, Question, Rubric

LOG = logging.getLogger(__name__)
MAX_PACK_TOKENS = 2048
"""Item tokens in one forward pass: bounds the attention mask."""
FIRST_TEXT = "You see here a lichen."
TEXT_BESIDE = "You see here a newt."


class TransformersEngine:
    """Scores texts with one model under one rubric; ValueError at construction where model and rubric do not fit."""

    judges = True
    needs_calibration = True

    def __init__(self, config: ServiceConfig, rubric: Rubric):
        self._device = resolve_device(config.device, "service.device")
        self._batch_size = config.batch_size
        self._model, self._tokenizer, dtype = _load(config.model, config.dtype, self._device)
        self.model = config.model
        self.name = f"transformers/{self._device.type}/{dtype}"
        self.fingerprint = _fingerprint(self._model, self._tokenizer, self.name)
        self._head = self._model.get_output_embeddings()
        single, pair = rubric.question(), rubric.pair_question() if rubric.pairs else None
        self._single = self._asking(self._prompt(single))
        self._pair_prompt = self._prompt(pair) if pair else None
        self._pair: _Asking | None = None
        self._rubric = rubric

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, in their order; NaN for a text that cannot be asked as plain text."""
        return self._score(self._single, texts)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """One score per pair as it is shown; ValueError where the rubric has no pairs."""
        if self._pair_prompt is None:
            self._rubric.pair_question()  # says what is missing
        if self._pair is None:  # a second of computing that few runs need
            assert self._pair_prompt is not None
            self._pair = self._asking(self._pair_prompt)
        return self._score(self._pair, [self._rubric.pair_text(first, second) for first, second in pairs])

    def close(self) -> None:
        """Nothing outside this process to free."""

    def _prompt(self, question: Question) -> PromptTokens:
        context = getattr(self._model.config, "max_position_embeddings", None) or 1 << 20
        return PromptTokens(
            self._tokenizer, question, model=self.model, max_text_tokens=MAX_PACK_TOKENS, context=context
        )

    def _asking(self, prompt: PromptTokens) -> "_Asking":
        """Ready for texts. Computing the prefix and a first text in one plain pass tells whether this model can be asked in packs:
        some change their logits afterwards or ignore a packed mask, and would answer wrongly in silence. ValueError for such."""
        first = prompt.tokens(FIRST_TEXT) or []
        cache = DynamicCache()
        with torch.no_grad():
            ids = torch.tensor([prompt.prefix + first], device=self._device)
            last = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits = last.logits[:, -1].float()
        cache.crop(-len(first))
        asking = _Asking(prompt, cache, self._head.weight[prompt.answers].float())
        plain = _scores(logits, prompt.answers, logits[:, prompt.answers], prompt.weights)[0]
        packed = self._score_pack(asking, [prompt.tokens(TEXT_BESIDE) or [], first])[1]
        difference = max(abs(a - b) for a, b in zip(packed[:2], plain[:2], strict=True))
        if not difference < (0.1 if self._model.dtype is torch.bfloat16 else 0.001):  # NaN fails too
            raise ValueError(
                f"model '{self.model}' does not work with a shared prefix (packed {packed}, plain {plain}): "
                "choose a plain decoder-only transformer without logit post-processing, or dtype float32"
            )
        return asking

    def _score(self, asking: "_Asking", texts: Sequence[str]) -> list[Score]:
        sequences = [asking.prompt.tokens(text) for text in texts]
        scores = [Score(math.nan, 0.0)] * len(texts)
        for pack in self._packs(sequences):
            for index, score in zip(
                pack, self._score_pack(asking, [sequences[index] or [] for index in pack]), strict=True
            ):
                scores[index] = score
        return scores

    def _packs(self, sequences: Sequence[list[int] | None]) -> Iterator[list[int]]:
        """Indices of the sequences to score, in groups that fit one forward pass."""
        pack: list[int] = []
        tokens = 0
        for index, sequence in enumerate(sequences):
            if sequence is None:
                continue
            if pack and (len(pack) == self._batch_size or tokens + len(sequence) > MAX_PACK_TOKENS):
                yield pack
                pack, tokens = [], 0
            pack.append(index)
            tokens += len(sequence)
        if pack:
            yield pack

    @torch.no_grad()
    def _score_pack(self, asking: "_Asking", sequences: Sequence[list[int]]) -> list[Score]:
        num_prefix = len(asking.prompt.prefix)
        tree = _TokenTree(sequences)
        positions = torch.from_numpy(tree.depths) + num_prefix
        visible = torch.ones(len(tree.tokens), num_prefix + len(tree.tokens), dtype=torch.bool)  # [Q, P+Q]
        visible[:, num_prefix:] = torch.from_numpy(tree.sees)
        mask = torch.zeros(visible.shape, dtype=self._model.dtype).masked_fill_(
            ~visible, torch.finfo(self._model.dtype).min
        )
        ids, ends = torch.tensor(tree.tokens), torch.tensor(tree.ends)
        hidden = self._model.base_model(
            input_ids=ids[None].to(self._device),
            attention_mask=mask[None, None].to(self._device),
            position_ids=positions[None].to(self._device),
            past_key_values=copy.deepcopy(asking.prefix_cache),
            use_cache=True,
        ).last_hidden_state[0, ends.to(self._device)]  # [N, H]
        logits = self._head(hidden).float()  # [N, V]
        # bf16 logits lie on a grid of 1/8, too coarse to rank by: the answers' own are computed again in fp32.
        return _scores(logits, asking.prompt.answers, hidden.float() @ asking.answer_rows.T, asking.prompt.weights)


@dataclass(frozen=True, slots=True)
class _Asking:
    """One way of asking, ready for texts."""

    prompt: PromptTokens
    prefix_cache: DynamicCache
    answer_rows: torch.Tensor
    """[A, H] f32: the output matrix's rows of the answers."""


class _TokenTree:
    """Q tokens for all sequences: what several begin with stands once."""

    def __init__(self, sequences: Sequence[list[int]]) -> None:
        self.tokens: list[int] = []
        self.ends: list[int] = []
        """Where each sequence's last token stands."""
        places: dict[tuple[int, int], int] = {}
        parents: list[int] = []
        for sequence in sequences:
            place = -1
            for token in sequence:
                parent, place = place, places.setdefault((place, token), len(self.tokens))
                if place == len(self.tokens):
                    self.tokens.append(token)
                    parents.append(parent)
            self.ends.append(place)
        self.sees = np.eye(len(self.tokens), dtype=bool)
        """[Q, Q] bool: which tokens each sees, itself and those before it in its sequences."""
        for place, parent in enumerate(parents):
            if parent >= 0:
                self.sees[place] |= self.sees[parent]
        self.depths = self.sees.sum(1) - 1
        """[Q] i64: how many tokens stand before each."""


def _scores(
    logits: torch.Tensor, answers: list[int], fine_logits: torch.Tensor, weights: Sequence[float]
) -> list[Score]:
    """Scores from all logits [N, V] and the answers' logits [N, A] as precisely as they are known, each answer with its weight."""
    shares = fine_logits.softmax(-1)
    probabilities = shares @ torch.tensor(weights[: len(answers)], dtype=shares.dtype, device=shares.device)
    mass = logits.softmax(-1)[:, answers].sum(-1)
    return [
        Score(p, min(m, 1.0), tuple(s))
        for p, m, s in zip(probabilities.tolist(), mass.tolist(), shares.tolist(), strict=True)
    ]


def _load(model: str, dtype: str, device: torch.device) -> tuple[Any, Any, str]:
    """Model, tokenizer, and the number type that `dtype` stands for."""
    source = model_source(str(bundled_model_folder()) if model == "smollm2" else model)
    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # without a network it tells of each of a dozen attempts
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        dtype = resolve_dtype(dtype, device, layer_of(AutoConfig.from_pretrained(source).get_text_config()))
        loaded, unused = load_whole(AutoModelForCausalLM, source, model, dtype=getattr(torch, dtype))
        if unused:
            LOG.warning("model '%s': %s", model, unused_advice(unused))
        return loaded.to(device).eval(), tokenizer, dtype
    except IncompleteWeights:
        raise
    except Exception as error:  # the loader raises whatever the files provoke: OSError, KeyError, SafetensorError, ...
        raise ValueError(f"model '{model}' cannot be loaded ({named(error)}): {MODEL_WANTED}") from error


def _fingerprint(model: Any, tokenizer: Any, engine: str) -> str:
    """Hash of all that decides an answer; weights enter by shape and 4096 evenly spaced values each (all of a small model takes longer
    to move off a GPU than to load)."""
    digest = xxhash.xxh3_128(f"{engine}/prompt {PROMPT_VERSION}".encode())
    for name, weights in model.state_dict().items():
        sample = weights.flatten()[:: max(1, weights.numel() // 4096)].float().cpu().numpy()
        digest.update(f"{name}{tuple(weights.shape)}".encode())
        digest.update(sample.tobytes())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update((tokenizer.chat_template or "").encode())
    return digest.hexdigest()
