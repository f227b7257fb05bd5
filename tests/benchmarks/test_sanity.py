"""The sanity benchmark: its memory task, what is repeated and what is not, its figures, and what it says where
something is missing."""

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from configs.loading import load_config
from tests.benchmarks import sanity
from tests.benchmarks.sanity_environments import require
from tests.benchmarks.sanity_figures import mean_interval, ratio, summarise
from tests.benchmarks.sanity_ours import settings
from tests.benchmarks.sanity_tasks import TASKS
from tests.toy_environments import TMaze


def test_every_tasks_settings_are_a_configuration():
    for task in TASKS.values():
        config = load_config(overrides=settings(task, 7, ["learner.gamma=0.5"]))
        assert (config.seed, config.total_env_steps, config.env.id) == (7, task.env_steps, task.env_id)
        assert (config.reward_model.name, config.learner.gamma) == ("none", 0.5)


@pytest.mark.parametrize(("goal", "right_branch"), [(0, 0), (2, 2)])
def test_only_the_first_step_shows_the_side_and_only_the_junction_has_branches(goal: int, right_branch: int):
    maze = TMaze(length=3)
    seed = next(
        seed
        for seed in range(100)
        if np.array_equal(maze.reset(seed=seed)[0], (maze.LEFT_SIGN, maze.RIGHT_SIGN)[goal // 2])
    )
    maze.reset(seed=seed)
    assert maze.step(right_branch)[1:4] == (-0.1, False, False), "no branch at the start"
    seen = [maze.step(1)[0] for _ in range(3)]
    assert [obs.tolist() for obs in seen] == [maze.CORRIDOR.tolist()] * 2 + [maze.JUNCTION.tolist()]
    assert maze.step(1)[1:4] == (-0.1, False, False), "the junction's wall"
    _, reward, terminated, truncated, info = maze.step(right_branch)
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    maze.reset(seed=seed)
    for action in (1, 1, 1):
        maze.step(action)
    assert maze.step(2 - right_branch)[1:4] == (-0.1, True, False)


def test_the_maze_is_a_coin_toss_without_the_sign():
    maze = TMaze()
    signs = [bool(np.array_equal(maze.reset(seed=seed)[0], maze.LEFT_SIGN)) for seed in range(400)]
    assert 160 < sum(signs) < 240


def test_finished_runs_are_not_repeated_unless_their_settings_changed(tmp_path: Path, monkeypatch, capsys):
    played = []

    def play(config, task, seed, weights):
        played.append((config.learner.gamma, seed))
        return {"final": 20.0 + seed}

    monkeypatch.setattr("tests.benchmarks.sanity_ours.evaluate", play)
    monkeypatch.setattr(
        "tests.benchmarks.sanity_ours.train_and_evaluate",
        lambda task, seed, folder, more: play(load_config(), task, seed, {}),
    )
    command = ["--out", str(tmp_path), "--tasks", "cartpole", "--seeds", "1", "2", "--json"]
    assert sanity.main([*command, "--arms", "random"]) == 0
    assert len(played) == 2
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"task": "cartp')  # as a killed process leaves it
    assert sanity.main([*command, "--arms", "random"]) == 0
    assert len(played) == 2
    assert sanity.main([*command, "--arms", "random", "ours"]) == 0
    assert sanity.main([*command, "--arms", "ours", "--set", "learner.gamma=0.5"]) == 0
    assert len(played) == 6
    arms = json.loads(capsys.readouterr().out.splitlines()[-1])["tasks"]["cartpole"]["arms"]
    assert arms["random"]["final"] == arms["ours"]["final"] == [21.0, 22.0]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 7


def test_a_missing_reference_is_said_with_what_it_needs(tmp_path: Path, capsys):
    with pytest.raises(ValueError, match=r"--reference-python is needed.*stable-baselines3"):
        sanity.main(["--out", str(tmp_path), "--tasks", "cartpole"])
    command = [
        "--out",
        str(tmp_path),
        "--tasks",
        "cartpole",
        "--seeds",
        "1",
        "--arms",
        "reference",
        "--reference-python",
    ]
    assert sanity.main([*command, str(tmp_path / "python")]) == 1
    assert "No such file" in capsys.readouterr().err
    if not _has("stable_baselines3"):
        assert sanity.main([*command, sys.executable]) == 1
        assert "No module named 'stable_baselines3'" in capsys.readouterr().err


def _has(module: str) -> bool:
    try:
        require("", module)
    except ValueError:
        return False
    return True


def test_a_missing_game_is_said_with_the_package_that_has_it():
    with pytest.raises(ValueError, match=r"needs the package some-game.*pip install some-game"):
        require("some-game", "no_such_game")


def test_ratios_are_of_means_over_seeds():
    figures = ratio([1.0, 2.0, 3.0], [4.0, 4.0, 4.0])
    assert figures["mean"] == 0.5
    assert 0.25 <= figures["low"] < 0.5 < figures["high"] <= 0.75
    assert mean_interval([0.5, 0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_a_task_is_summed_up_by_arm_in_the_order_of_seeds():
    def run(arm: str, seed: int, final: float):
        return {"task": "cartpole", "arm": arm, "seed": seed, "final": final, "curve": [[10, 0.0], [20, final]]}

    runs = [run("ours", 2, 450.0), run("ours", 1, 350.0), run("reference", 1, 500.0)]
    figures = summarise(runs)["cartpole"]
    assert figures["arms"]["ours"] == {"seeds": [1, 2], "final": [350.0, 450.0], "pace": [175.0, 225.0]}
    assert (figures["final_ratio"]["mean"], figures["pace_ratio"]["mean"]) == (0.8, 0.8)


def test_tables_go_between_the_documents_marks(tmp_path: Path):
    document = tmp_path / "sanity.md"
    document.write_text(f"# Title\n{sanity.BEGIN}\nold\n{sanity.END}\nAfter.\n")
    sanity.write_tables(document, "| new |\n")
    assert document.read_text() == f"# Title\n{sanity.BEGIN}\n\n| new |\n\n{sanity.END}\nAfter.\n"
    document.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the lines"):
        sanity.write_tables(document, "")


@pytest.mark.skipif(not _has("ale_py") or not _has("cv2"), reason="ale-py and OpenCV are not installed")
def test_a_training_episode_is_a_life_and_an_evaluations_a_game():
    lengths = {}
    for whole_games in (False, True):
        env = gymnasium.make("tests.benchmarks.sanity_environments:Atari-v0", size=42, whole_games=whole_games)
        env.reset(seed=1)
        total, ended = 0.0, False
        for step in range(5000):
            obs, reward, ended, _, _ = env.step(step % 4)
            total += reward
            if ended:
                lengths[whole_games] = step
                break
        assert ended
        assert obs.shape == (4, 42, 42)
        env.close()
    assert lengths[True] > 3 * lengths[False]
