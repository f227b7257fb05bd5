"""The transformers engine: any causal language model of Hugging Face, read by the log-probabilities of two answer tokens.

Invariant: one forward pass over an item's own tokens gives its answer, and that answer is the one a plain forward pass over
the whole prompt gives (checked when the engine is built).

The rubric's part of the prompt is computed once. Items are then packed one after another into a single sequence behind that
prefix: positions restart and the attention mask is block-diagonal, so an item sees the prefix and itself only. The prefix's
key/value cache is so shared by all items instead of copied for each, and there is no padding.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import xxhash
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging as transformers_logging

from configs.service_schema import ServiceConfig
from llm_server.annotation import Score
from llm_server.bundled_model import bundled_model_folder
from llm_server.engine import MODEL_WANTED, model_source
from llm_server.rubric import Rubric

DTYPES = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}
MAX_PACK_TOKENS = 2048
"""Item tokens in one forward pass: bounds the attention mask."""
ITEM_MARK = "\u2063item\u2063"
"""Stands for the item while the chat template is applied; item texts cannot contain it (it is a format character)."""


class TransformersEngine:
    """Scores texts with one model under one rubric; ValueError at construction where model and rubric do not fit."""

    needs_calibration = True

    def __init__(self, config: ServiceConfig, rubric: Rubric):
        dtype = DTYPES[config.dtype]
        self._device = _device(config.device)
        self._batch_size = config.batch_size
        self._model, self._tokenizer = _load(config.model, dtype, self._device)
        self.model = config.model
        self.name = f"transformers/{str(dtype).removeprefix('torch.')}"
        self.fingerprint = _fingerprint(self._model, self._tokenizer, self.name)
        # Only a template's own text may contain special tokens; an item's may not.
        self._special = frozenset(self._tokenizer.all_special_ids) | frozenset(self._tokenizer.added_tokens_decoder)
        before, after = self._prompt(rubric)
        self._prefix, self._suffix = self._start() + self._tokens(before), self._tokens(after)
        self._lead = " " if rubric.style == "completion" or before.endswith(rubric.item_label) else ""
        self._answers = [self._answer_token(word, after) for word in (rubric.positive, rubric.negative)]
        self._answer_rows = self._model.get_output_embeddings().weight[self._answers].float()
        self._max_item_tokens = self._room(config.model)
        self._prefix_cache = self._compute_prefix()
        self._check_against_plain_forward(config.model, "You see here a lichen.")

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, in their order; NaN for a text that cannot be asked as plain text."""
        sequences = [self._item_tokens(text) for text in texts]
        scores = [Score(math.nan, 0.0)] * len(texts)
        for pack in self._packs(sequences):
            for index, score in zip(pack, self._score_pack([sequences[index] or [] for index in pack]), strict=True):
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
    def _score_pack(self, sequences: Sequence[list[int]]) -> list[Score]:
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        ids = torch.tensor([token for sequence in sequences for token in sequence])  # [Q]
        owner = torch.repeat_interleave(torch.arange(len(sequences)), lengths)  # [Q], which item a token belongs to
        ends = torch.cumsum(lengths, 0) - 1
        positions = torch.arange(len(ids)) - (ends + 1 - lengths)[owner] + len(self._prefix)
        own_past = (owner[:, None] == owner[None, :]) & torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        visible = torch.cat([torch.ones(len(ids), len(self._prefix), dtype=torch.bool), own_past], dim=1)  # [Q, P+Q]
        mask = torch.zeros(visible.shape, dtype=self._model.dtype).masked_fill_(~visible, torch.finfo(self._model.dtype).min)
        hidden = self._model.base_model(
            input_ids=ids[None].to(self._device),
            attention_mask=mask[None, None].to(self._device),
            position_ids=positions[None].to(self._device),
            past_key_values=copy.deepcopy(self._prefix_cache),
            use_cache=True,
        ).last_hidden_state[0, ends.to(self._device)]  # [N, H]
        logits = self._model.get_output_embeddings()(hidden).float()  # [N, V]
        # bf16 logits lie on a grid of 1/8, too coarse to rank by: the answers' two are computed again in fp32.
        return _scores(logits, self._answers, hidden.float() @ self._answer_rows.T)

    def _check_against_plain_forward(self, model: str, text: str) -> None:
        """Some models change their logits afterwards or ignore a packed mask; their answers would be silently wrong."""
        item = self._item_tokens(text) or []
        packed = self._score_pack([item, item])[1]
        with torch.no_grad():
            logits = self._model(torch.tensor([self._prefix + item], device=self._device)).logits[:, -1].float()
        plain = _scores(logits, self._answers, logits[:, self._answers])[0]
        difference = max(abs(a - b) for a, b in zip(packed, plain, strict=True))
        if not difference < 0.1:  # NaN fails too
            raise ValueError(
                f"model '{model}' does not work with a shared prefix (packed {packed}, plain {plain}): "
                "choose a plain decoder-only transformer without logit post-processing, or dtype float32"
            )

    @torch.no_grad()
    def _compute_prefix(self) -> DynamicCache:
        cache = DynamicCache()
        self._model.base_model(input_ids=torch.tensor([self._prefix], device=self._device), past_key_values=cache, use_cache=True)
        return cache

    def _prompt(self, rubric: Rubric) -> tuple[str, str]:
        if rubric.style == "completion":
            return rubric.completion_prompt()
        if not self._tokenizer.chat_template:
            raise ValueError(f"rubric '{rubric.id}' has style chat but model '{self.model}' has no chat template: use a completion rubric")
        text = self._tokenizer.apply_chat_template(rubric.chat_messages(ITEM_MARK), tokenize=False, add_generation_prompt=True)
        before, _, after = text.rpartition(ITEM_MARK)
        return before.rstrip(" "), after

    def _start(self) -> list[int]:
        """The token that begins every text of this model, where it has one and the chat template does not write it."""
        with_specials = self._tokenizer("a")["input_ids"]
        return with_specials[:1] if with_specials[0] == self._tokenizer.bos_token_id else []

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _item_tokens(self, text: str) -> list[int] | None:
        """Tokens of a text and of what follows it, the text's read as plain text only; None where one is special all the same."""
        tokens = self._tokenizer(self._lead + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if self._special.intersection(tokens):
            return None
        return tokens[: self._max_item_tokens] + self._suffix

    def _answer_token(self, word: str, after: str) -> int:
        """The answer's one token where it stands; ValueError where it is more than one there."""
        tokens = self._tokens(after + word)
        if tokens[:-1] != self._suffix:
            single = tokens[len(self._suffix) :] if tokens[: len(self._suffix)] == self._suffix else tokens
            raise ValueError(
                f"the answer '{word}' is {len(single)} tokens for model '{self.model}' where it stands "
                f"({[self._tokenizer.decode([t]) for t in single]}): choose a word that is one token, mind its leading space"
            )
        return tokens[-1]

    def _room(self, model: str) -> int:
        context = getattr(self._model.config, "max_position_embeddings", None) or 1 << 20
        room = context - len(self._prefix) - len(self._suffix)
        if room < 64:
            raise ValueError(
                f"the rubric takes {len(self._prefix)} of the {context} tokens that model '{model}' can read: use fewer examples"
            )
        return min(room, MAX_PACK_TOKENS)


def _scores(logits: torch.Tensor, answers: list[int], fine_logits: torch.Tensor) -> list[Score]:
    """Scores from all logits [N, V] and the two answers' logits [N, 2] as precisely as they are known."""
    probabilities = torch.sigmoid(fine_logits[:, 0] - fine_logits[:, 1])
    mass = logits.softmax(-1)[:, answers].sum(-1)
    return [Score(p, min(m, 1.0)) for p, m in zip(probabilities.tolist(), mass.tolist(), strict=True)]


def _load(model: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    source = model_source(str(bundled_model_folder()) if model == "smollm2" else model)
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        # Safetensors only: no pickle is read.
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True)
        return loaded.to(device).eval(), tokenizer
    except Exception as error:  # the loader raises whatever the files provoke: OSError, KeyError, SafetensorError, ...
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"model '{model}' cannot be loaded ({type(error).__name__}: {reason}): {MODEL_WANTED}") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device '{name}': use cpu, cuda, cuda:N or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device '{name}' was asked for but this machine has {torch.cuda.device_count()} CUDA devices: use auto or cpu")
    return device


def _fingerprint(model: Any, tokenizer: Any, engine: str) -> str:
    """Hash of all that decides an answer; weights enter by shape and 4096 evenly spaced values each (all of a small model takes longer
    to move off a GPU than to load)."""
    digest = xxhash.xxh3_128(engine.encode())
    for name, weights in model.state_dict().items():
        sample = weights.flatten()[:: max(1, weights.numel() // 4096)].float().cpu().numpy()
        digest.update(f"{name}{tuple(weights.shape)}".encode())
        digest.update(sample.tobytes())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update((tokenizer.chat_template or "").encode())
    return digest.hexdigest()
