"""The engine that a configuration names, checked and built.

Invariant: mistakes that can be found without loading anything are found without loading anything.
"""

from collections.abc import Sequence
from typing import Any

from configs.annotation_schema import ServiceConfig
from configs.errors import did_you_mean
from llm_server.annotation import Score
from llm_server.engines.devices import DTYPES
from llm_server.engines.engine import Engine
from llm_server.engines.models import model_source
from llm_server.engines.scripted_engine import ScriptedEngine
from llm_server.rubrics.rubric import Rubric

ENGINES = ("transformers", "vllm", "openai", "scripted", "none")


def check_engine(config: ServiceConfig) -> None:
    """ValueError for a mistake that shows without loading: in engine name, script, model folder, encoder or URL."""
    if config.engine not in ENGINES:
        raise ValueError(
            f"unknown engine '{config.engine}'{did_you_mean(config.engine, ENGINES)}: use one of {', '.join(ENGINES)}"
        )
    if config.engine == "scripted":
        ScriptedEngine(config)
    elif config.engine == "none":
        from llm_server.engines.sentence_encoder import encoder_source

        encoder_source(config.encoder)
    elif config.engine == "openai":
        from llm_server.engines.openai_http import check_url

        check_url(config.endpoint)
    else:
        if config.dtype not in DTYPES:
            raise ValueError(f"unknown dtype '{config.dtype}': use one of {', '.join(DTYPES)}")
        model_source(config.model)
        if config.engine == "vllm":
            from llm_server.engines.vllm_program import vllm_python

            vllm_python(config.vllm_python)


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
    """The engine of a service that only embeds sentences; judges refuse to ask it."""

    name = model = fingerprint = "none"
    judges = needs_calibration = False

    def score(self, texts: Sequence[Any]) -> list[Score]:
        """Never called."""
        raise RuntimeError("engine 'none' only embeds sentences, it scores nothing")

    score_pairs = score

    def close(self) -> None:
        """Nothing to free."""
