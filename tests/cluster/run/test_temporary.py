"""Temporary files lie where TMPDIR says, and Ray's session only where the paths of its sockets fit."""

import os
import tempfile
from pathlib import Path

import pytest

from cluster.run import temporary


@pytest.fixture
def tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR of the process, as it is found at the start."""
    monkeypatch.setattr(temporary, "SHORT_ROOT", tmp_path / "short")
    (tmp_path / "short").mkdir()
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_tmpdir_is_honoured_and_a_child_finds_the_same_directory(tmpdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = temporary.enter("/runs/first")
    assert directory.parent == tmpdir
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(directory)
    monkeypatch.setattr(tempfile, "tempdir", None)  # as a child starts
    assert temporary.enter("/runs/first") == directory
    assert temporary.temporary_directory("/runs/second").parent == tmpdir
    temporary.sweep("/runs/first")
    assert not directory.exists()
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmpdir)


def test_a_session_lies_below_it_as_long_as_its_sockets_fit(tmpdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for length in range(1, 40):
        monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * length)
        session = temporary.ray_directory("/runs/first")
        is_own = session.parent == temporary.temporary_directory("/runs/first")
        longest = session / "session_2026-11-26_13-27-17_933963_1234567" / "sockets" / "plasma_store"
        sizes[length] = (is_own, len(str(longest)))
        assert session.parent.parent == (Path(tempfile.tempdir) if is_own else temporary.SHORT_ROOT)
    assert all(size <= 107 for is_own, size in sizes.values() if is_own)
    assert max(size for is_own, size in sizes.values() if is_own) == 107
    assert not sizes[39][0]


def test_a_sweep_takes_a_session_elsewhere_along(tmpdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmpdir / ("t" * 80)))
    session = temporary.ray_directory("/runs/first")
    session.mkdir(parents=True)
    temporary.sweep("/runs/first")
    assert list(temporary.SHORT_ROOT.iterdir()) == []
