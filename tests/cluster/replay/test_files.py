"""The files that a replay writes, read back by what others read them with."""

import builtins
import itertools
import json
import shutil
import stat
import struct
from pathlib import Path

import numpy as np
import pytest

from cluster.replay import animation
from cluster.replay.animation import LacksEncoder, scaled_up
from cluster.replay.files import write_file
from cluster.replay.recording import Recording
from configs.checks import ConfigError
from tests.cluster.replay.recordings import recording


def written(path: Path, shown: Recording, moments: range | None = None) -> Path:
    write_file(shown, range(len(shown.moments)) if moments is None else moments, 10.0, str(path))
    assert [other.name for other in path.parent.iterdir()] == [path.name], "nothing unfinished is left"
    return path


@pytest.mark.parametrize("ending", [".ttyrec", ".ttyrec.bz2"])
def test_nles_own_reader_reads_the_ttyrec(tmp_path: Path, ending: str) -> None:
    from nle.dataset import Converter

    shown = recording()
    path = written(tmp_path / f"game{ending}", shown)
    if ending == ".ttyrec":  # NLE's reader takes compressed files only
        assert struct.unpack_from("<iiiB", path.read_bytes())[3] == 0
        return
    chars, colours = np.zeros((20, 24, 80), np.uint8), np.zeros((20, 24, 80), np.int8)
    cursors, times = np.zeros((20, 2), np.int16), np.zeros(20, np.int64)
    keys, scores = np.zeros(20, np.uint8), np.zeros(20, np.int32)
    converter = Converter(24, 80, 3)
    converter.load_ttyrec(str(path))
    assert 20 - converter.convert(chars, colours, cursors, times, keys, scores) == len(shown.moments) == 13
    for t, moment in enumerate(shown.moments):
        assert moment.screen is not None
        assert moment.colours is not None
        rows = [row.tobytes().decode() for row in chars[t]]
        assert rows[:23] == [*moment.screen[:23]]
        assert rows[23][:79] == moment.screen[23][:79]
        is_drawn = chars[t] != ord(" ")
        assert (colours[t] == moment.colours)[is_drawn].all()
        assert tuple(cursors[t]) == moment.cursor
    assert keys[:13].tolist() == [ord("L")] * 12 + [0]
    assert set(scores[:13]) == {7}
    assert np.diff(times[:13]).min() > 0


@pytest.mark.parametrize("kind", ["screen", "picture", "text"])
def test_an_asciicast_is_json_lines_in_order_of_time(tmp_path: Path, kind: str) -> None:
    lines = written(tmp_path / "game.cast", recording(kind)).read_text().splitlines()
    header, *events = map(json.loads, lines)
    assert header["version"] == 2
    assert (header["width"], header["height"]) == (80, 30 if kind != "text" else 6)
    assert [event[:2] for event in events] == [[t / 10, "o"] for t in range(13)]
    assert "far east" in events[4][2] or "step 4 of 12" in events[4][2]
    assert "You are at 4. ½" in events[4][2]
    assert len(events[4][2]) < len(events[0][2]) or kind != "screen", "only what has changed"


@pytest.mark.parametrize(("kind", "size"), [("screen", (480, 320)), ("picture", (480, 280)), ("text", (480, 56))])
def test_a_gif_has_a_frame_per_moment(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    from PIL import Image

    with Image.open(written(tmp_path / "game.gif", recording(kind), range(2, 12, 3))) as image:
        assert image.n_frames == 4  # type: ignore[attr-defined]
        assert image.size == size
        assert image.info["duration"] == 100
        frames = []
        for number in range(4):
            image.seek(number)
            frames.append(np.array(image.convert("RGB")))
    assert all((one != other).any() for one, other in itertools.pairwise(frames))
    if kind == "picture":
        assert abs(int(frames[0][100, 240, 0]) - 20) <= 1, "the picture of moment 2"


def test_pixels_become_squares() -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    large = scaled_up(picture)
    assert large.shape == (214, 321, 3)
    assert (large[:107, 107:214] == picture[0, 1]).all()
    assert scaled_up(np.zeros((400, 100, 3), np.uint8)).shape == (400, 100, 3)


def test_an_mp4_is_piped_to_ffmpeg_frame_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" > "$FFMPEG_SAW"\nfor last; do :; done\ncat > "$last"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("FFMPEG_SAW", str(tmp_path / "saw"))
    (tmp_path / "out").mkdir()
    path = written(tmp_path / "out" / "game.mp4", recording("picture"))
    assert path.stat().st_size == 13 * 480 * 280 * 3
    assert "-s 480x280 -r 10 " in (tmp_path / "saw").read_text()
    program.write_text("#!/bin/sh\necho no such codec >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match=r"could not write .*: no such codec"):
        written(path, recording())


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    absent, make = ("PIL", "imageio_ffmpeg"), builtins.__import__

    def without(name, *others):
        if name.startswith(absent):
            raise ModuleNotFoundError(name)
        return make(name, *others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LacksEncoder, match="install it, or `pip install imageio-ffmpeg`"):
        animation._ffmpeg()
    with pytest.raises(LacksEncoder, match=r"pip install 'delphi-rl\[replay\]'"):
        write_file(recording(), range(3), 10.0, str(tmp_path / "game.gif"))
    assert [*tmp_path.iterdir()] == []


def test_a_file_that_cannot_hold_the_game_is_refused_and_the_old_one_kept(tmp_path: Path) -> None:
    path = tmp_path / "game.ttyrec.bz2"
    path.write_text("old")
    with pytest.raises(ConfigError, match="a ttyrec holds NetHack's terminal, which Hand-v0 does not have"):
        written(path, recording("picture"))
    assert path.read_text() == "old"
    with pytest.raises(ConfigError, match=r"wanted a name that ends with \.cast, \.gif"):
        written(tmp_path / "game.avi", recording())
