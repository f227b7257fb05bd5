"""The C functions: made once where there is a compiler, and equal to the Python beside them."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actors.environments.nethack import crop, episode_stats, native, states
from actors.environments.nethack.crop import MAP_CELLS, MAP_WIDTH, OUTSIDE_GLYPH, make_maps, view_for
from actors.environments.nethack.episode_stats import UNSEEN_GLYPH, count_seen
from actors.environments.nethack.game import make_screens


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, from which nothing has been loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def needs_compiler() -> None:
    if native.library() is None:
        pytest.skip("this machine has no C compiler")


def test_they_are_compiled_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    (made,) = own_cache.glob("delphi/nethack-functions-*/native.so")
    native.library.cache_clear()
    monkeypatch.setattr(native, "_compile", None)
    assert native.library() is not None
    assert made.exists()


@pytest.mark.parametrize(
    ("path", "compiler", "words"),
    [("", "cc", "has no C compiler"), (None, "false", "exit code 1: no output")],
)
def test_without_them_one_line_says_why(
    path: str | None,
    compiler: str,
    words: str,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", compiler)
    if path is not None:
        monkeypatch.setenv("PATH", path)
    with caplog.at_level(logging.INFO, native.logger.name):
        assert native.library() is native.library() is None
    (record,) = caplog.records
    assert record.message.startswith("NetHack's engines are stepped by Python, which is slower than C: ")
    assert words in record.message
    assert not list(own_cache.glob("delphi/nethack-functions-*/native.so"))


def test_a_cache_that_cannot_be_written_is_no_error(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_cache / "delphi").write_text("a file in the place of the folder")
    assert native.library() is None


@pytest.mark.parametrize("network", ["glyph_crop", "nethack_full", "rendered_crop"])
def test_windows_are_those_of_numpy_everywhere_on_the_map_and_off_it(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_compiler()
    view = view_for(network, 9)
    x, y = (places.reshape(-1) for places in np.meshgrid([-1, 0, 1, 40, 77, 78, 200], [-1, 0, 3, 10, 19, 20, 99]))
    maps = make_maps(len(x), view.layers)
    for layer in view.layers:
        maps[layer][:, :MAP_CELLS] = np.random.default_rng(0).integers(250, size=(len(x), MAP_CELLS))
    blstats = np.zeros((len(x), 27), np.int64)
    blstats[:, 0], blstats[:, 1] = x, y
    ours, theirs = (np.full((len(x), *view.spec.shape), 77, view.spec.dtype) for _ in range(2))
    view.cut(maps, blstats[:, 0], blstats[:, 1], ours)
    monkeypatch.setattr(crop, "library", lambda: None)
    view.cut(maps, blstats[:, 0], blstats[:, 1], theirs)
    np.testing.assert_array_equal(ours, theirs)


def test_seen_tiles_are_counted_as_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    maps = np.random.default_rng(0).choice([UNSEEN_GLYPH, OUTSIDE_GLYPH, 1, -1], (7, MAP_CELLS + 1)).astype(np.int16)
    ours = count_seen(maps[:, :MAP_CELLS])
    monkeypatch.setattr(episode_stats, "library", lambda: None)
    np.testing.assert_array_equal(ours, count_seen(maps[:, :MAP_CELLS]))
    assert ours.dtype == np.int16


def test_kinds_of_things_are_noted_as_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    rng = np.random.default_rng(0)
    screens = make_screens(40, ("glyphs",), ("blstats", "message"))
    screens["glyphs"][:20, :MAP_CELLS] = UNSEEN_GLYPH
    for screen in range(20):  # few things, the last cell and the agent's own among their places
        cells = [*rng.integers(MAP_CELLS, size=5), MAP_CELLS - 1]
        screens["glyphs"][screen, cells] = rng.integers(OUTSIDE_GLYPH, size=6)
        screens["blstats"][screen, :2] = cells[0] % MAP_WIDTH, cells[0] // MAP_WIDTH
    screens["glyphs"][20:, :MAP_CELLS] = rng.integers(OUTSIDE_GLYPH, size=(20, MAP_CELLS))
    screens["blstats"][30, :2] = -1
    size = (len(states._kinds()[1]) + 7) // 8
    ours, theirs = np.zeros((40, size + 3), np.uint8), np.zeros((40, size + 3), np.uint8)
    states._write_kinds(screens, ours[:, 3:])
    monkeypatch.setattr(states, "library", lambda: None)
    states._write_kinds(screens, theirs[:, 3:])
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours, axis=0)) > 20
