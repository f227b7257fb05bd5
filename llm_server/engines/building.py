"""The engine that a configuration names, checked and built, and the two engines without a model.

Invariant: mistakes that can be found without loading anything are found without loading anything. The scripted engine
is deterministic: the same script gives the same text the same answer, and the same texts in turn as writings.
"""

import dataclasses
import hashlib
import re
import time
from collections.abc import Sequence
from typing import Any

from configs.annotation_schema import ServiceConfig
from configs.fields import complaint
from llm_server.annotation import Score, Written
from llm_server.engines.engine import Engine
from llm_server.engines.models import model_source
from llm_server.rubrics.rubric import Rubric
from llm_server.writing.brief import Brief
from llm_server.writing.script import ScriptedWritings

DEFAULT_PROBABILITY = 0.1


def check_engine(config: ServiceConfig) -> None:
    """ValueError for a mistake that shows without loading: in engine, dtype, script, model folder, encoder or URL."""
    for field in dataclasses.fields(config):
        if field.name in ("engine", "dtype") and (wrong := complaint(field, getattr(config, field.name))):
            raise ValueError(f"service.{field.name}: {wrong}")
    if config.engine == "scripted":
        ScriptedEngine(config)
    elif config.engine == "none":
        from llm_server.engines.sentence_encoder import encoder_source

        encoder_source(config.encoder)
    elif config.engine == "openai":
        from llm_server.engines.openai_http import check_url

        check_url(config.endpoint)
    else:
        if config.model != "smollm2":  # the packaged one, whatever lies here under that name
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
    judges = writes = needs_calibration = False

    def under(self, rubric: Rubric) -> "NoEngine":
        """Itself."""
        return self

    def score(self, texts: Sequence[Any]) -> list[Score]:
        """Never called."""
        raise RuntimeError("engine 'none' only embeds sentences, it scores nothing")

    score_pairs = score

    def write(self, brief: Brief, text: str, seeds: Sequence[int]) -> list[Written]:
        """Never called."""
        raise RuntimeError("engine 'none' only embeds sentences, it writes nothing")

    def close(self) -> None:
        """Nothing to free."""


class ScriptedEngine:
    """Gives a text the probability of the first rule whose expression matches it; for tests and debugging."""

    judges = True
    needs_calibration = False

    def __init__(self, config: ServiceConfig) -> None:
        self._rules = _parse(config.script)
        self._delay_s = config.script_delay_s
        self._writings = ScriptedWritings(config.script_writings)
        self.writes = bool(config.script_writings)
        """Whether there is a script for it."""
        self.name = self.model = "scripted"
        scripts = f"{config.script}{self._writings.content}"
        self.fingerprint = f"scripted-{hashlib.sha256(scripts.encode()).hexdigest()[:16]}"

    def under(self, rubric: Rubric) -> "ScriptedEngine":
        """Itself: it reads no rubric."""
        return self

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, after the script's delay for each."""
        time.sleep(self._delay_s * len(texts))
        return [Score(self._probability(text), 1.0) for text in texts]

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """The first is better as far as its log-odds exceed the second's (Bradley-Terry)."""
        time.sleep(self._delay_s * len(pairs))
        return [Score(self._preference(first, second), 1.0) for first, second in pairs]

    def write(self, brief: Brief, text: str, seeds: Sequence[int]) -> list[Written]:
        """What the file of writings gives, after the script's delay for each."""
        time.sleep(self._delay_s * len(seeds))
        return [self._writings.next(brief, text) for _ in seeds]

    def close(self) -> None:
        """Nothing to free."""

    def _preference(self, first: str, second: str) -> float:
        p, q = (min(max(self._probability(text), 1e-6), 1 - 1e-6) for text in (first, second))
        return p * (1 - q) / (p * (1 - q) + q * (1 - p))

    def _probability(self, text: str) -> float:
        return next((probability for rule, probability in self._rules if rule.search(text)), DEFAULT_PROBABILITY)


def _parse(script: str) -> list[tuple[re.Pattern[str], float]]:
    rules = []
    for rule in filter(None, (part.strip() for part in script.split(";"))):
        expression, _, probability = rule.rpartition("=")
        try:
            rules.append((re.compile(expression), float(probability)))
        except (re.error, ValueError) as error:
            raise ValueError(f"script rule '{rule}' is not `regex=probability`: {error}") from None
        if not expression or not 0.0 <= rules[-1][1] <= 1.0:
            raise ValueError(f"script rule '{rule}' is not `regex=probability` with a probability in 0 to 1")
    return rules
