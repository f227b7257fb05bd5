"""`delphi replay` as a user meets it: lists, text, files, errors, and a real terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from cluster.replay.command import chosen, main
from cluster.replay.games import Game, evaluated_games
from tests.cluster.replay.small_runs import CORRIDOR, make_run

FEW = ["--episodes", "4", "--envs", "2", "--player", "random"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_run(tmp_path_factory.mktemp("replayed") / "run", *CORRIDOR, rewards={"You bump into a wall.": 0.5})


def games_of(run: str) -> list[Game]:
    return evaluated_games(run, player="random", episodes=4, envs=2, say=lambda text: None)


def test_the_list_has_every_game_with_its_metrics(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run, *FEW, "--list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["game", "env", "episode", "return", "length", "success"]
    assert [line.split()[:3] for line in lines] == [["0", "0", "0"], ["1", "0", "1"], ["2", "1", "0"], ["3", "1", "1"]]
    assert [float(line.split()[4]) for line in lines] == [game.metrics["length"] for game in games_of(run)]


def test_without_a_terminal_it_prints_a_line_per_step(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run, *FEW, "--episode", "2"]) == 0
    head, first, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "action", "reward", "intrinsic", "judge", "value", "caption"]
    assert first.endswith("You enter the corridor.")
    assert len(lines) == games_of(run)[2].metrics["length"]
    assert any(re.search(r"\s0\.5\s+0\.50\s+-\s+You bump into a wall\.$", line) for line in lines)
    assert main([run, *FEW, "--episode", "2", "--every", "3", "--from", "1", "--to", "7"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "1", "4", "7"]


def test_the_best_median_and_worst_are_by_return() -> None:
    games = [
        Game(place=(0, 0, n), metrics={"return": value}, seed=0, actions=[], values=None, before=[], first_episode=0)  # type: ignore[arg-type]
        for n, value in enumerate([2.0, 9.0, -1.0, 4.0, 3.0])
    ]
    returns = {which: chosen(games, which).metrics["return"] for which in ("best", "median", "worst", "3")}
    assert returns == {"best": 9.0, "median": 3.0, "worst": -1.0, "3": 4.0}


def test_a_file_is_written_and_summed_up(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run, *FEW, "--out", str(tmp_path / "game.cast"), "--every", "2"]) == 0
    assert re.fullmatch(r".*/game\.cast: \d+ frames of \d+ steps, return \S+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episode", "bst"], ["'bst' (did you mean 'best'?)", "--list"]),
        (["--episode", "4"], ["got 4, wanted at most 3"]),
        (["--every", "0"], ["--every: got 0, wanted at least 1"]),
        (["--from", "5", "--to", "3"], ["--to: got 3, which is before --from 5"]),
        (["--speed", "nan"], ["--speed: got nan, wanted a number above 0"]),
        (["--out", "game.avi"], ["wanted a name that ends with .cast"]),
        (["--out", "nowhere/game.gif"], ["there is no folder nowhere"]),
        (["--out", "game.ttyrec"], ["which tests.toy_environments:Corridor-v0 does not have"]),
        (["--episodes", "0"], ["--episodes: got 0"]),
    ],
)
def test_a_wrong_command_is_one_line(
    run: str, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    games_of(run)
    assert main([run, *FEW, *arguments]) == 2
    *progress, line = capsys.readouterr().err.splitlines()
    assert line.startswith("delphi replay: ")
    assert [word for word in words if word not in line] == []
    assert not [other for other in progress if not other.startswith("writing")]


class Terminal:
    """A command in a real pseudo-terminal, with what it has shown so far."""

    def __init__(self, *command: str) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (30, 90))
        self.before = termios.tcgetattr(slave)
        environment = os.environ | {"TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=self._heed_ctrl_c,
        )
        self.slave, self.shown = slave, ""

    @staticmethod
    def _heed_ctrl_c() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background of a shell

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.shown[-2000:]!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 65536).decode("utf-8", "replace")

    def press(self, text: str) -> None:
        self.shown = ""
        os.write(self.master, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def test_in_a_terminal_keys_work_and_ctrl_c_leaves_it_as_it_was(run: str) -> None:
    games_of(run)
    command = [sys.executable, "-m", "cluster.replay.command", run, *FEW, "--episode", "worst", "--speed", "0.01"]
    terminal = Terminal(*command)
    try:
        terminal.wait_for(r"\x1b\[\?1049h.*step 0 of 12.*You enter the corridor\..*\? help")
        terminal.press("\x1b[C")
        terminal.wait_for(r"step 1 of 12")
        terminal.press("11\r")
        terminal.wait_for(r"step 11 of 12")
        terminal.press("?")
        terminal.wait_for("one step forth")
        terminal.press(" ")
        terminal.wait_for("paused")
        terminal.press("\x03")
        terminal.wait_for(r"\x1b\[\?25h\x1b\[\?1049l")
        assert terminal.process.wait(timeout=60) == 130
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()
