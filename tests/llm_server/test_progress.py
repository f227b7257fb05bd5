"""Progress is printed on standard error, as a bar or as lines, and not at all without items."""

import pytest

from llm_server import progress as module
from llm_server.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test advances."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_every_ten_seconds_and_at_the_end(capsys, clock):
    with progress("pairs", 60) as advance:
        for seconds in (4.0, 8.0, 12.0, 16.0):
            clock[0] = seconds
            advance(10)
        clock[0] = 20.0
        advance(20)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["pairs: 30 of 60, 2.5/s, 12 s left", "pairs: 60 of 60, 3.0/s, done"]
    assert not captured.out


def test_before_the_first_item_no_time_left_is_told(capsys, clock):
    with progress("pairs", 60) as advance:
        clock[0] = 11.0
        advance(0)
    assert capsys.readouterr().err == "pairs: 0 of 60, 0.0/s\n"


def test_a_terminal_has_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("pairs", 60) as advance:
        advance(20)
        advance(40)
    captured = capsys.readouterr()
    assert "60/60" in captured.err
    assert "/s, left:" in captured.err
    assert not captured.out


@pytest.mark.parametrize("colour", ["", "1"])
def test_no_items_print_nothing(capsys, monkeypatch, colour):
    monkeypatch.setenv("FORCE_COLOR", colour)
    with progress("pairs", 0):
        pass
    assert capsys.readouterr() == ("", "")
