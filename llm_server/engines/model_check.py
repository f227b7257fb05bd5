"""What can be found out about a model before it is loaded: whether its files are whole, and whether the rubric's
answers fit it.

Invariant: nothing is downloaded and no weights are read, so it takes seconds whatever the model's size; missing weights
are found by the same code as when the model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.annotation_schema import ServiceConfig
from llm_server.engines.models import (
    MODEL_WANTED,
    NO_CODE,
    IncompleteWeights,
    check_files,
    check_unpackable,
    load_tokenizer,
    load_whole,
    loading,
    model_source,
    packed_model,
    readable_model_folder,
    unpacked_model,
)
from llm_server.engines.prompt_tokens import PromptTokens
from llm_server.engines.sentence_encoder import UNREAD, encoder_source, loading_encoder, takes_first_token
from llm_server.rubrics.rubric import Rubric


class ModelNotHere(ValueError):
    """The files of a Hugging Face id are not on this machine yet, or the packaged model is not unpacked yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model folder holds (model check -> `delphi doctor`)."""

    folder: Path
    weights_bytes: int
    answers: list[str]
    """The answer tokens, of single judgements and then of pairs."""
    unused: Sequence[str] = ()
    """Tensors in its files that the model does not use."""


def check_model(config: ServiceConfig, rubric: Rubric) -> ModelFacts:
    """The facts of `config.model` under `rubric`. Raises ModelNotHere; ValueError where files or weights are missing or
    damaged, or an answer is more than one token in its context."""
    if config.model == "smollm2" and unpacked_model() is None:
        check_unpackable()
        with readable_model_folder() as folder:
            return replace(_facts(folder, config, rubric), folder=packed_model().parent)
    return _facts(local_folder(config.model), config, rubric)


def _facts(folder: Path, config: ServiceConfig, rubric: Rubric) -> ModelFacts:
    weights_bytes = _check_weights(folder, config.model)
    tokenizer, _, context = load_tokenizer(folder, config.model, local_files_only=True)
    tokens: list[int] = []
    for question in (rubric.question(), *([rubric.pair_question()] if rubric.pairs else [])):
        tokens += PromptTokens(tokenizer, question, model=config.model, context=context).answers
    answers, unused = [tokenizer.decode([token]) for token in tokens], unused_tensors(folder, config)
    return ModelFacts(folder=folder, weights_bytes=weights_bytes, answers=answers, unused=unused)


def check_encoder_model(encoder: str) -> Path:
    """The encoder's folder. Raises ModelNotHere; ValueError where files or weights are missing or damaged."""
    from transformers import AutoModel

    folder = Path(encoder_source(encoder)) if encoder == "minilm" else local_folder(encoder)
    _check_weights(folder, encoder)
    _load_without_weights(AutoModel, folder, encoder, unread=UNREAD)
    with loading_encoder(encoder):
        takes_first_token(folder)
    return folder


def local_folder(model: str) -> Path:
    """The folder of `model` on this machine. Raises ModelNotHere and ValueError."""
    if model == "smollm2":
        unpacked = unpacked_model()
        if unpacked is None:
            raise ModelNotHere(
                "model 'smollm2', as packaged: the first start unpacks it into the user's cache (266 MB, some seconds)"
            )
        model = str(unpacked)
    source = model_source(model)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json")
    if not isinstance(found, str) or not any(Path(found).parent.glob("*.safetensors")):
        raise ModelNotHere(f"model '{model}' is not on this machine")
    folder = Path(found).parent
    try:
        check_files(folder, model)
    except IncompleteWeights as error:
        raise ModelNotHere(f"model '{model}' is on this machine in part: {error}") from None
    is_sharded, is_whole = (any(folder.glob(f"model{name}")) for name in ("-*-of-*.safetensors", ".safetensors*"))
    for is_lacking, name in (
        (not any(folder.glob("tokenizer*")), "tokenizer"),
        (is_sharded and not is_whole, "model.safetensors.index.json"),
    ):
        if is_lacking:
            raise ModelNotHere(f"model '{model}' is on this machine in part, without its {name}")
    return folder


def _check_weights(folder: Path, model: str) -> int:
    """Bytes of all weights; ValueError for a truncated file, or none at all."""
    import safetensors

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"model '{model}' has no *.safetensors in {folder}: {MODEL_WANTED}")
    for file in files:
        try:
            with safetensors.safe_open(str(file), framework="pt") as opened:
                opened.keys()
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"weights {file} are damaged ({error}): fetch the model again") from None
    return sum(file.stat().st_size for file in files)


def unused_tensors(folder: Path, config: ServiceConfig) -> list[str]:
    """Tensors in the files of a language model that it does not use; ValueError where weights are missing."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(folder, local_files_only=True, **NO_CODE)
    if hasattr(settings, "quantization_config"):
        if config.engine == "transformers":
            _check_quantizer(settings.quantization_config, config.model)
        return []  # only the kernels of a quantized model know the names of its weights
    try:
        return _load_without_weights(AutoModelForCausalLM, folder, config.model)
    except IncompleteWeights:
        raise
    except ValueError:
        if config.engine == "vllm":  # it reads models that transformers does not
            return []
        raise


def _check_quantizer(settings: Any, model: str) -> None:
    """ValueError where a package or device is missing that the weights' format needs."""
    from transformers.quantizers import AutoHfQuantizer

    if AutoHfQuantizer.supports_quant_method(settings):  # transformers ignores the settings of others
        with loading(f"model '{model}'"):
            AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment(device_map=None)


def _load_without_weights(auto_class: Any, folder: Path, model: str, *, unread: str = "") -> list[str]:
    """Tensors that the model does not use, found by loading it onto the meta device; all errors are ValueErrors."""
    with loading(f"model '{model}'"):
        return load_whole(auto_class, folder, model, unread=unread, device_map="meta", local_files_only=True)[1]
