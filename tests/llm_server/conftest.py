"""What the tests of the annotation service share: the real model, loaded once."""

import pytest

from configs.service_schema import ServiceConfig
from llm_server.engine import Engine, build_engine
from llm_server.rubric import Rubric
from llm_server.rubric_file import load_rubric


@pytest.fixture(scope="session")
def rubric() -> Rubric:
    return load_rubric("nethack_progress")


@pytest.fixture(scope="session")
def smollm2(rubric: Rubric) -> Engine:
    return build_engine(ServiceConfig(torch_threads=0), rubric)
