"""What keys do, and what is drawn."""

import re

import pytest

from cluster.replay.playback import HELP, Playback
from cluster.replay.terminal import drawing, keys
from cluster.replay.view import Totals, redrawn
from tests.cluster.replay.recordings import recording

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def pressed(playback: Playback, *names: str) -> Playback:
    for name in names:
        playback.press(name)
    return playback


def plain(lines: list[str]) -> list[str]:
    return [ESCAPES.sub("", line) for line in lines]


def test_time_passes_at_its_speed_until_the_end_and_space_starts_again() -> None:
    playback = Playback(last=20, speed=10.0)
    playback.pass_time(0.55)
    assert playback.moment == 5
    playback.pass_time(9.0)
    assert (playback.moment, playback.is_running) == (20, False)
    assert (pressed(playback, " ").moment, playback.is_running) == (0, True)
    pressed(playback, " ").pass_time(5.0)
    assert playback.moment == 0, "paused"


@pytest.mark.parametrize(
    ("names", "moment"),
    [
        (["right"], 51),
        ([".", "."], 52),
        (["left", ",", ","], 47),
        (["down"], 150),
        (["up"], 0),
        (["home"], 0),
        (["end", "right"], 300),
        (["n", "n"], 90),
        (["n", "n", "n", "p"], 60),
        (["g", "1", "2", "enter"], 12),
        (["1", "2", "backspace", "7", "enter"], 17),
        (["9", "9", "9", "9", "enter"], 300),
        (["4", "escape", "right"], 51),
        (["x", "é", "²"], 50),
    ],
)
def test_keys_move(names: list[str], moment: int) -> None:
    playback = pressed(Playback(last=300, rewarded=(10, 60, 90), at=50.0), *names)
    assert playback.moment == moment
    assert not playback.is_over


def test_speed_help_and_quit() -> None:
    playback = pressed(Playback(last=9), "+", "+")
    assert playback.speed == 50.0
    assert pressed(playback, *"-" * 20).speed == 0.5
    assert pressed(playback, "?").shows_help
    playback.pass_time(100.0)
    assert playback.moment == 0, "the help stops time"
    assert not pressed(playback, "q").shows_help
    assert not playback.is_over, "any key leaves the help"
    assert pressed(playback, "q").is_over


def test_what_terminals_send_is_understood() -> None:
    sent = "\x1b[C\x1bOD \x1b[5~q\x1b[20;2~\r1\x1b"
    assert [*keys(sent)] == ["right", "left", " ", "up", "q", "enter", "1", "escape"]


@pytest.mark.parametrize("kind", ["screen", "picture", "text"])
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (80, 40), (200, 28), (120, 26), (40, 10), (20, 3), (5, 1)])
def test_a_drawing_fits_every_terminal(kind: str, columns: int, rows: int) -> None:
    shown, playback = recording(kind), Playback(last=12, at=4.0)
    for playback.shows_help in (False, True):
        lines = plain(drawing(shown, playback, Totals.of(shown), columns, rows))
        assert len(lines) <= max(rows, 2)
        assert max(map(len, lines)) <= columns


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (80, 31), (130, 26)])
def test_everything_about_a_moment_is_shown(columns: int, rows: int) -> None:
    shown = recording()
    text = "\n".join(plain(drawing(shown, Playback(last=12, at=4.0), Totals.of(shown), columns, rows)))
    wanted = ["Hand-v0", "return 3", "@", "Agent S:7", "HP:9", "step 4 of 12", "far east", "reward +1 (sum 1)"]
    wanted += ["intrinsic +0 (sum 0.25)", "judge 0.75", "value 1.5", "You are at 4. ½", "? help"]
    assert [word for word in wanted if word not in text] == []


def test_help_names_every_key_and_a_jump_shows_what_is_typed() -> None:
    shown = recording()
    lines = plain(drawing(shown, Playback(last=12, shows_help=True), Totals.of(shown), 80, 24))
    assert [line.rstrip() for line in lines[2:12]] == [*HELP]
    typing = drawing(shown, pressed(Playback(last=12), "g", "7"), Totals.of(shown), 80, 24)
    assert "to step (0 to 12): 7_" in plain(typing)[-1]


def test_only_changed_lines_are_drawn_again() -> None:
    assert redrawn(["a", "b", "c"], ["a", "x"]) == "\x1b[2;1Hb\x1b[K\x1b[3;1Hc\x1b[K"
    assert redrawn(["a"], ["a", "x"]) == "\x1b[2;1H\x1b[K"
    assert redrawn(["a"], None).startswith("\x1b[2J")
