"""Metric lines on a full disk: a limit on file sizes makes the kernel fail in the middle of a line."""

import logging
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.run import metric_writer
from cluster.run.logs import log_to_file
from cluster.run.metric_writer import LineAppender, MetricWriter


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """`limit(n)`: no file of this process grows beyond n bytes; -1 lifts it."""
    for handler in [existing for existing in logging.getLogger().handlers if isinstance(existing, logging.FileHandler)]:
        logging.getLogger().removeHandler(handler)  # of a run in another test: its file counts, too
        handler.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    on_limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size < 0 else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, on_limit)


def test_lines_that_the_disk_refuses_are_written_in_order_when_there_is_room(
    tmp_path: Path, limit: Callable[[int], None]
) -> None:
    path = tmp_path / "lines"
    lines = LineAppender(path)
    lines.append("first")
    limit(9)
    for text in ("second", "third"):
        lines.append(text)
        assert path.read_text() == "first\n", "never a part of a line"
        assert str(path) in str(lines.problem)
    limit(-1)
    lines.append("fourth")
    assert path.read_text() == "first\nsecond\nthird\nfourth\n"
    assert lines.problem is None
    lines.close()


def test_what_waits_is_bounded_and_written_at_the_end(
    tmp_path: Path, limit: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_writer, "MAX_WAITING", 3)
    lines = LineAppender(tmp_path / "lines")
    limit(0)
    for number in range(10):
        lines.append(str(number))
    limit(-1)
    lines.close()
    assert (tmp_path / "lines").read_text() == "7\n8\n9\n"


def test_an_existing_file_grows(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("before\n")
    lines = LineAppender(tmp_path / "lines")
    lines.append("after")
    lines.close()
    assert (tmp_path / "lines").read_text() == "before\nafter\n"


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's writer is a thread, which dies of it
def test_metrics_go_on_when_the_disk_refuses_them(tmp_path: Path, limit: Callable[[int], None]) -> None:
    writer = MetricWriter(tmp_path, tensorboard=True, run_name="run")
    writer.write({"env_steps": 1})
    size = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    limit(size + 10)
    for step in range(2, 30):
        assert writer.write({"env_steps": step})["env_steps"] == step
    assert writer.problem
    limit(-1)
    writer.write({"env_steps": 30})
    assert writer.problem is None
    writer.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 30


def test_a_log_that_cannot_be_written_says_so_once(
    tmp_path: Path, limit: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    try:
        log_to_file(tmp_path / "log.txt")
        logging.info("before")
        limit(5)
        for _ in range(20):
            logging.info("lost %s", "x" * 10_000)
        limit(-1)
        logging.info("after")
        error = capsys.readouterr().err
        assert error.count("could not be written") == 1
        assert "Traceback" not in error
        assert "before" in (tmp_path / "log.txt").read_text()
        assert "after" in (tmp_path / "log.txt").read_text()
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)


def test_a_log_takes_any_character(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    try:
        log_to_file(tmp_path / "log.txt")
        (handler,) = [handler for handler in root.handlers if handler not in handlers]
        # Given to the handler alone: the half character in a captured log would be no text for pytest-xdist.
        handler.handle(logging.makeLogRecord({"msg": "run caf\udce9 → ☃"}))
        assert (tmp_path / "log.txt").read_bytes().endswith("run caf\\udce9 → ☃\n".encode())
        assert "Logging error" not in capsys.readouterr().err
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
