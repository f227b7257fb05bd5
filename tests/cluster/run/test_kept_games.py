"""An evaluation keeps the games that it plays, and goes on after them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from cluster.run.kept_games import MAX_FILES, KeptGames
from cluster.verbs.evaluate import evaluate, main
from learner.checkpoint import save_checkpoint
from tests.cluster.replay.small_runs import CORRIDOR, NETHACK, make_run


def played(run: str, **options) -> tuple[dict, list[str]]:
    """The report, and which players were played for it."""
    said: list[str] = []
    report = evaluate(run, **{"episodes": 4, "num_envs": 2, "seed": 0, **options}, say=said.append)
    return report, [text.rpartition(" ")[2] for text in said if text.startswith("playing")]


def test_a_repeated_evaluation_plays_nothing_and_reports_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *NETHACK)
    first, names = played(run)
    assert names == ["policy", "blind", "random"]
    assert played(run) == (first, [])
    assert played(run, episodes=3) == (first, []), "3 episodes in 2 environments are 4"
    assert played(run, again=True) == (first, names)
    for other in ({"seed": 1}, {"num_envs": 4}, {"episodes": 6}):
        assert played(run, **other)[1] == names


def test_it_goes_on_after_the_players_that_have_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, whole = (make_run(tmp_path / name, *CORRIDOR) for name in ("run", "whole"))
    monkeypatch.setattr("cluster.run.evaluation.RandomPlayer", None)
    with pytest.raises(TypeError):
        played(run)
    monkeypatch.undo()
    report, names = played(run)
    assert names == ["random"]
    assert report | {"run": ""} == played(whole)[0] | {"run": ""}


def test_another_checkpoint_or_environment_is_another_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *CORRIDOR)
    played(run)
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["env"]["max_episode_steps"] = 3
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    assert len(played(run)[1]) == 3
    other = make_run(tmp_path / "other", *CORRIDOR, "policy.hidden_size=8")
    shutil.copytree(tmp_path / "run/evaluations", tmp_path / "other/evaluations")
    assert len(played(other)[1]) == 3, "of equal steps, but not the same weights"
    state = {"learner": {"weights": {}}, "loop": {"env_steps": 11}}
    save_checkpoint(tmp_path / "run/checkpoints", 11, state, keep=2)
    with pytest.raises(ValueError, match="does not fit"):
        played(run)


def test_a_time_limit_keeps_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *CORRIDOR)
    assert len(played(run, seconds=1000.0)[1]) >= 3
    assert not (tmp_path / "run/evaluations").exists()


def test_damaged_files_count_as_empty_and_old_ones_are_removed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *CORRIDOR)
    folder = tmp_path / "run/evaluations"
    folder.mkdir()
    for n in range(MAX_FILES + 3):
        (folder / f"{n}.safetensors").write_bytes(b"old")
        os.utime(folder / f"{n}.safetensors", (n, n))
    first, _ = played(run)
    assert len([*folder.iterdir()]) == MAX_FILES
    file = max(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    content = file.read_bytes()
    for damaged in (b"", content[:100], content[:-1], b"\xff" * 50, content.replace(b"episodes", b"episodez")):
        file.write_bytes(damaged)
        assert KeptGames(file, "").players == {}
        assert played(run) == (first, ["policy", "blind", "random"])


def test_a_folder_that_cannot_be_written_costs_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path / "run", *CORRIDOR)
    (tmp_path / "run/evaluations").write_text("in the way")
    report, _ = played(run)
    assert report["episodes"] == 4
    assert "the games of this evaluation are not kept" in caplog.text


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *NETHACK[:1], "env.max_episode_steps=4000")
    command = [sys.executable, "-m", "cluster.verbs.evaluate", run, "--episodes", "2", "--envs", "2", "--json"]
    # Where the tests run in the background of a shell, they and their children ignore Ctrl-C.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heeds)
    assert process.stderr is not None
    deadline = time.monotonic() + 120
    while "playing 2 episodes: blind" not in (line := process.stderr.readline()):
        assert line, "it ended too early"
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert error.splitlines()[-1] == (
        "delphi eval: interrupted; players that have finished are kept, the same command continues"
    )
    assert process.returncode == 1
    assert len([*(tmp_path / "run/evaluations").iterdir()]) == 1


def test_eval_says_what_it_does_not_play(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", *CORRIDOR)
    assert main([run, "--episodes", "2", "--json"]) == 0
    first = capsys.readouterr()
    assert main([run, "--episodes", "2", "--json"]) == 0
    second = capsys.readouterr()
    assert json.loads(second.out) == json.loads(first.out)
    assert [line.partition(":")[0] for line in second.err.splitlines()] == ["policy", "blind", "random"]
    assert "are kept in" in second.err
