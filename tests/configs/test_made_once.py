"""A folder that is made once is complete or absent after every kind of preparation, concurrent or killed."""

import multiprocessing
from pathlib import Path

import pytest

from configs.made_once import make_once


def _fill(folder: Path) -> None:
    (folder / "weights").write_text("all of them")


def _make_and_log(folder: Path, log: Path, barrier) -> None:
    def make(partial: Path) -> None:
        with log.open("a") as lines:
            lines.write("made\n")
        _fill(partial)

    barrier.wait()
    assert (make_once(folder, make) / "weights").read_text() == "all of them"


def test_concurrent_processes_make_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [
        context.Process(target=_make_and_log, args=(tmp_path / "model", tmp_path / "log", barrier)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_failure_leaves_nothing_and_the_next_begins_anew(tmp_path):
    def break_off(partial: Path) -> None:
        (partial / "weights").write_text("half of")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        make_once(tmp_path / "model", break_off)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert (make_once(tmp_path / "model", _fill) / "weights").read_text() == "all of them"


def test_what_a_killed_process_left_is_swept(tmp_path):
    left_over = tmp_path / ".model.partial-killed"
    left_over.mkdir()
    make_once(tmp_path / "model", _fill)
    assert not left_over.exists()
