"""Replays hold every frame of an episode, and a good, a median and a bad one are chosen."""

import base64
import gzip
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.replay.recording import Recording
from cluster.report import replays
from cluster.report.replays import chosen, encoded
from tests.cluster.report.small_run import minigrid_recording, nethack_recording


def unpacked(replay: dict[str, Any]) -> dict[str, np.ndarray]:
    """Frames by plane, as the page adds them up."""
    data, offset, found = gzip.decompress(base64.b64decode(replay["frames"])), 0, {}
    for plane in replay["planes"]:
        dtype, count = np.dtype(f"<u{plane['bytes']}"), int(np.prod(plane["shape"]))
        steps = np.frombuffer(data, dtype, count, offset).reshape(plane["shape"])
        found[plane["name"]] = np.cumsum(steps, axis=0, dtype=dtype)
        offset += count * dtype.itemsize
    return found


@pytest.fixture(scope="module")
def nethack() -> Recording:
    return nethack_recording()


def test_screens_and_their_colours_come_back(nethack: Recording) -> None:
    frames = unpacked(encoded(nethack))
    for moment, characters, colours in zip(nethack.moments, frames["characters"], frames["colours"], strict=True):
        assert tuple("".join(map(chr, row)) for row in characters) == moment.screen
        assert np.array_equal(colours, moment.colours)


def test_pictures_come_back() -> None:
    recording = minigrid_recording()
    (frames,) = unpacked(encoded(recording)).values()
    for moment, picture in zip(recording.moments, frames, strict=True):
        assert np.array_equal(picture, moment.picture)


def test_moments_come_back_and_an_episode_without_frames_has_them_too(nethack: Recording) -> None:
    bare = replace(nethack, moments=tuple(replace(m, screen=None, colours=None) for m in nethack.moments))
    replay = encoded(bare)
    assert replay["planes"] == []
    columns = json.loads(gzip.decompress(base64.b64decode(replay["moments"])))
    assert columns["caption"] == [moment.caption for moment in nethack.moments]
    assert columns["intrinsic"] == [moment.intrinsic for moment in nethack.moments]
    assert columns["probability"][0] is None


def test_a_long_episode_has_fewer_frames_and_all_moments(nethack: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "MAX_FRAME_BYTES", 3 * 24 * 80 * 4)
    replay = encoded(nethack)
    frames = unpacked(replay)["characters"]
    assert len(frames) <= 4
    for number, frame in enumerate(frames):
        screen = nethack.moments[number * replay["every"]].screen
        assert tuple("".join(map(chr, row)) for row in frame) == screen


def test_the_best_the_median_and_the_worst_game_are_chosen() -> None:
    games = [SimpleNamespace(place=(0, i, 0), metrics={"return": r, "length": 1.0}) for i, r in enumerate([3, 9, 1, 5])]
    assert {label: game.metrics["return"] for label, game in chosen(games).items()} == {
        "good": 9,
        "median": 3,
        "bad": 1,
    }
    assert len(chosen(games[:1])) == 1
    assert chosen([]) == {}
