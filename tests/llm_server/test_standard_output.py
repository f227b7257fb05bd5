"""A reader of standard output that has left is no error; all else is."""

import os
import sys

import pytest

from llm_server.standard_output import reader_may_leave


@pytest.fixture(params=[1, 8192], ids=["line by line", "in blocks"])
def abandoned(request, monkeypatch):
    """Standard output is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=request.param) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield stream


def test_a_reader_may_leave(abandoned):
    with reader_may_leave():
        print("a line")
    print("goes nowhere", flush=True)


def test_other_errors_are_the_callers(abandoned):
    with pytest.raises(ValueError, match="mine"), reader_may_leave():
        raise ValueError("mine")
