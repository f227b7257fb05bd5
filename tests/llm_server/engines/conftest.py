"""Fixtures of the tests of engines."""

from collections.abc import Iterator

import pytest

from tests.llm_server.fake_endpoint import FakeEndpoint


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    served = FakeEndpoint()
    yield served
    served.close()
