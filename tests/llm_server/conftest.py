"""Fixtures of the tests of the annotation service; the real model is loaded once."""

import dataclasses

import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.engines.building import build_engine
from llm_server.engines.engine import Engine
from llm_server.rubrics.loading import load_rubric
from llm_server.rubrics.rubric import Rubric


@pytest.fixture(scope="session")
def rubric() -> Rubric:
    return load_rubric("nethack_progress")


@pytest.fixture(scope="session")
def yes_or_no(rubric: Rubric) -> Rubric:
    """A rubric of the same goal with two answers."""
    assert rubric.pairs
    return dataclasses.replace(
        rubric,
        positive=" yes",
        negative=" no",
        positive_kinds=(),
        minor_kinds=(),
        negative_kinds=(),
        separator="",
        answer_label=rubric.pairs.answer_label,
        instructions=rubric.pairs.instructions,
        examples=rubric.pairs.items,
    )


@pytest.fixture(scope="session")
def smollm2(rubric: Rubric) -> Engine:
    return build_engine(ServiceConfig(torch_threads=0), rubric)
