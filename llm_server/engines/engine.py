"""The `Engine` protocol: reads a model's answers to one rubric.

Invariant: an answer depends on the item alone, not on the batch it is scored in (beyond rounding).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from configs.annotation_schema import ServiceConfig
from configs.errors import did_you_mean
from llm_server.annotation import Score
from llm_server.engines.devices import DTYPES
from llm_server.engines.scripted_engine import ScriptedEngine
from llm_server.engines.weights import check_files
from llm_server.rubrics.rubric import Rubric

ENGINES = ("transformers", "vllm", "openai", "scripted", "none")
MODEL_WANTED = "give a folder with config.json, a tokenizer and safetensors weights, a Hugging Face id, or smollm2"


class Engine(Protocol):
    """One model with one rubric. Used from one thread at a time."""

    name: str
    """Engine, kind of device and dtype, for example `transformers/cpu/float32`."""
    model: str
    """The model as it was asked for."""
    fingerprint: str
    """Changes whenever the same text may get another answer: weights, tokenizer, prompt's version, engine, device, dtype."""

    judges: bool
    """False where only sentences are embedded here."""
    needs_calibration: bool
    """Whether its probabilities carry a bias that `threshold: auto` must find; otherwise theta is then 0.5."""

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, in their order; texts are single lines as `Rubric.item_text` makes them."""
        ...

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """One score per pair in the order it is shown: the probability of the answer that the first is better, a tie's half
        included. ValueError where the rubric has no `pairs`."""
        ...

    def close(self) -> None:
        """Free what it holds outside this process; may be called from any thread, and ends a `score` under way where that waits."""
        ...


def check_engine(config: ServiceConfig) -> None:
    """ValueError for what can be seen to be wrong without loading anything: the engine's name, the script, the model folder, the URL."""
    if config.engine not in ENGINES:
        raise ValueError(f"unknown engine '{config.engine}'{did_you_mean(config.engine, ENGINES)}: use one of {', '.join(ENGINES)}")
    if config.engine == "scripted":
        ScriptedEngine(config)
    if config.engine == "none":
        from llm_server.engines.sentence_encoder import check_encoder

        check_encoder(config.encoder)
    if config.engine in ("scripted", "none"):
        return
    if config.engine == "openai":
        from llm_server.engines.openai_http import check_url

        check_url(config.endpoint)
        return
    if config.dtype not in DTYPES:
        raise ValueError(f"unknown dtype '{config.dtype}': use one of {', '.join(DTYPES)}")
    model_source(config.model)
    if config.engine == "vllm":
        from llm_server.engines.vllm_program import vllm_python

        vllm_python(config.vllm_python)


def model_source(model: str) -> str:
    """What to load `model` from: a Hugging Face id as it is, or a folder that holds what a model folder must; else ValueError."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model:
            raise ValueError(f"model folder '{model}' does not exist: {MODEL_WANTED}")
        return model
    check_files(folder, model)
    for pattern in ("config.json", "tokenizer*", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise ValueError(f"model folder '{model}' has no {pattern}: {MODEL_WANTED}")
    return str(folder)


def build_engine(config: ServiceConfig, rubric: Rubric) -> Engine:
    """The engine that `config` names, loaded and ready; ValueError for an unknown engine or an unreadable model."""
    check_engine(config)
    if config.engine == "scripted":
        return ScriptedEngine(config)
    if config.engine == "none":
        return NoEngine()
    if config.engine == "openai":
        from llm_server.engines.openai_engine import OpenAIEngine

        return OpenAIEngine(config, rubric)
    if config.engine == "vllm":
        from llm_server.engines.vllm_engine import VllmEngine

        return VllmEngine(config, rubric)
    from llm_server.engines.transformers_engine import TransformersEngine

    return TransformersEngine(config, rubric)


class NoEngine:
    """Stands where a service only embeds sentences; a judge refuses to ask it."""

    name = model = fingerprint = "none"
    judges = False
    needs_calibration = False

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Never called."""
        raise RuntimeError("there is no engine here")

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Never called."""
        raise RuntimeError("there is no engine here")

    def close(self) -> None:
        """Nothing to free."""
