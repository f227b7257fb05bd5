"""Where a model's files lie on this machine, and what tells two of them apart.

Invariant: nothing but safetensors is taken as weights, so no pickle is read; equal fingerprints mean equal files, as far as
samples of the weights can tell.
"""

from pathlib import Path

import xxhash

from llm_server.bundled_model import bundled_model_folder
from llm_server.engine import MODEL_WANTED, model_source
from llm_server.question import PROMPT_VERSION

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
