"""No command fails because of its output stream or a character; lost results change the exit code."""

import contextlib
import fcntl
import importlib
import io
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cluster.cli import VERBS
from llm_server.standard_output import guarded, output_may_be_lost

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def output(
    monkeypatch: pytest.MonkeyPatch, number: int, buffering: int = -1, encoding: str = "utf-8"
) -> Iterator[None]:
    """Standard output is descriptor `number`."""
    with contextlib.suppress(BrokenPipeError), open(number, "w", buffering=buffering, encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield


def abandoned_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed_terminal() -> int:
    controller, terminal = os.openpty()
    os.close(controller)
    return terminal


def talk(code: int, *, may_be_lost: bool = False) -> int:
    if may_be_lost:
        output_may_be_lost()
    for _ in range(3):
        print("a line", flush=True)
    os.write(1 if sys.stdout.fileno() == 1 else sys.stdout.fileno(), b"as a child would\n")
    print("and what is written at the end")
    return code


@pytest.mark.parametrize("buffering", [1, 8192], ids=["line by line", "in blocks"])
@pytest.mark.parametrize(
    ("lost", "code", "code_of_a_result"),
    [(abandoned_pipe, 0, 0), (closed_terminal, 0, 0), (full_disk, 0, 1), (full_disk, 3, 3)],
)
def test_output_that_is_lost_ends_nothing(
    lost: Callable[[], int],
    code: int,
    code_of_a_result: int,
    buffering: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    for may_be_lost in (True, False):
        caplog.clear()
        with output(monkeypatch, lost(), buffering):
            assert guarded(lambda may_be_lost=may_be_lost: talk(code, may_be_lost=may_be_lost)) == (
                code if may_be_lost else code_of_a_result
            )
        assert [
            record.getMessage() for record in caplog.records if "cannot be written any more" in record.getMessage()
        ] != []
        assert len(caplog.records) == 1, "it is said once"
    assert ("No space left" in capsys.readouterr().err) == (lost is full_disk)


def test_errors_of_the_command_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        print("a line")
        raise ValueError("mine")

    with output(monkeypatch, abandoned_pipe()), pytest.raises(ValueError, match="mine"):
        guarded(fail)


@pytest.mark.parametrize(("given", "code"), [(None, 1), (0, 1), (2, 2)])
def test_help_that_is_lost_is_said_too(given: int | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def explain() -> int:
        print("usage")
        raise SystemExit(given)

    with pytest.raises(SystemExit) as caught:
        guarded(explain)
    assert not caught.value.code or caught.value.code == given
    with output(monkeypatch, full_disk()), pytest.raises(SystemExit) as caught:
        guarded(explain)
    assert caught.value.code == code


def test_characters_that_cannot_be_shown_are_shown_by_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for encoding, shown in (
        ("ascii", r"\u2192 \xe9 \udcff"),
        ("latin-1", "\\u2192 é \\udcff"),
        ("utf-8", "→ é \\udcff"),
    ):
        file = os.open(tmp_path / encoding, os.O_WRONLY | os.O_CREAT)
        with output(monkeypatch, file, encoding=encoding):
            assert guarded(lambda: print("→ é \udcff") or 0) == 0
        assert (tmp_path / encoding).read_bytes().decode(encoding) == f"{shown}\n"


def test_a_reader_that_is_slow_is_waited_for_even_if_the_pipe_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, fcntl.fcntl(writer, fcntl.F_GETFL) | os.O_NONBLOCK)
    received: list[bytes] = []

    def read() -> None:
        time.sleep(0.1)
        while chunk := os.read(reader, 1 << 16):
            received.append(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    with output(monkeypatch, writer):
        assert guarded(lambda: print("x" * 300_000) or 0) == 0
    thread.join()
    os.close(reader)
    assert len(b"".join(received)) == 300_001


def test_progress_that_nobody_reads_stops_nothing_and_is_shown_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llm_server.standard_output.PATIENCE_S", 0.2)
    caplog.set_level(logging.INFO)
    reader, writer = os.pipe()
    seen: list[bytes] = []

    def train() -> int:
        output_may_be_lost()
        for number in range(20_000):
            print(f"line {number}", flush=True)
        seen.append(os.read(reader, 1 << 20))
        print("the end", flush=True)
        return 0

    with output(monkeypatch, writer):
        assert guarded(train) == 0
    seen.append(os.read(reader, 1 << 20))
    os.close(reader)
    assert seen[0].startswith(b"line 0\nline 1\n")
    assert seen[1] == b"the end\n"
    assert [record.getMessage() for record in caplog.records] == [
        "standard output is not read any more: nothing is shown until it is"
    ]


def test_a_stream_in_memory_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    assert guarded(lambda: print("a line") or 0) == 0
    assert stream.getvalue() == "a line\n"


def test_a_stream_of_a_notebook_stays_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stream(io.StringIO):
        def fileno(self) -> int:  # the descriptor of the terminal behind, as in IPython
            return terminal.fileno()

    with (tmp_path / "terminal").open("w") as terminal:
        stream = Stream()
        monkeypatch.setattr(sys, "stdout", stream)
        assert guarded(lambda: print("a line") or 0) == 0
    assert (stream.getvalue(), (tmp_path / "terminal").read_text()) == ("a line\n", "")


def test_ctrl_c_ends_any_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        print("a line")
        raise KeyboardInterrupt

    assert guarded(interrupted) == 130
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("a line\n", "delphi: interrupted\n")


@pytest.mark.parametrize(("size", "kept"), [("0", None), ("", None), ("120", "120")])
def test_a_terminal_of_size_0_is_one_of_unknown_size(
    size: str, kept: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", size)
    assert guarded(lambda: Console(soft_wrap=True).print("the score is 7") or 0) == 0
    assert capsys.readouterr().out == "the score is 7\n"
    assert os.environ.get("COLUMNS") == kept


def test_closed_descriptors_are_not_given_to_the_next_file(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom llm_server.standard_output import guarded\n"
        "def command():\n    number = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "    print('lost')\n    os.write(number, str(number).encode())\n    return 0\n"
        "sys.exit(guarded(command))"
    )
    line = f'exec "{sys.executable}" -c "$1" "{tmp_path}/file" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", line, "sh", code], cwd=ROOT).returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.parametrize("module", sorted({module for module, _ in VERBS.values()}))
def test_every_verb_is_guarded_however_it_is_started(module: str) -> None:
    source = Path(str(importlib.import_module(module).__file__)).read_text()
    assert source.endswith('if __name__ == "__main__":\n    sys.exit(guarded(main))\n')
