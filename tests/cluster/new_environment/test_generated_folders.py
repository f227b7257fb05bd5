"""`delphi new-environment` writes folders that fit their environment and run as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import main
from configs.loading import load_config
from llm_server.rubrics.loading import load_rubric

ROOT = Path(__file__).parents[3]
IDS = {
    "own_pole": "CartPole-v1",
    "own_maze": "MiniGrid-DoorKey-5x5-v0",
    "own_painting": "tests.toy_environments:Painting-v0",
    "own_dungeon": "NetHackScore-v0",
    "own_corridor": "tests.toy_environments:Corridor-v0",
    "own_code": "tests.cluster.new_environment.small_environments:Code-v0",
    "own_task": None,
}


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a generated one for each of IDS."""
    out = tmp_path_factory.mktemp("projects")
    for name, env_id in IDS.items():
        given = ["--id", env_id] if env_id else []
        assert main(["new-environment", name, "--out", str(out), *given]) == 0
    return out


def test_their_own_tests_pass_each_with_a_run(projects: Path) -> None:
    command = [sys.executable, "-B", "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=projects, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"{3 * len(IDS)} passed" in done.stdout


def test_numbers_are_said_by_the_thirds_of_random_play(projects: Path) -> None:
    source = (projects / "own_pole" / "captioner.py").read_text()
    assert all(f"umber {i} is {{level(obs[{i}], " in source for i in range(4))
    said = load_rubric(str(projects / "own_pole" / "rubric.yaml"))
    assert {example.positive for example in said.examples} == {True, False}
    assert said.calibration.items
    assert all("number 3 is" in example.item for example in said.examples)


def test_minigrid_has_its_own_captioner_rubric_and_scale(projects: Path) -> None:
    assert "from actors.minigrid_captions import describe\n" in (projects / "own_maze" / "captioner.py").read_text()
    rubric = projects / "own_maze" / "rubric.yaml"
    assert "extends: minigrid_progress" in rubric.read_text()
    assert "You have picked up a yellow key." in rubric.read_text()
    policy = load_config(file=str(projects / "own_maze" / "config.yaml")).policy
    assert (policy.image_scale, policy.image_layout) == (10.0, "channels_last")
    assert "7 actions (left, right, forward" in (projects / "own_maze" / "README.md").read_text()


def test_text_in_info_is_the_caption_beside_an_image(projects: Path) -> None:
    assert "return str(info['text'])" in (projects / "own_painting" / "captioner.py").read_text()
    assert load_config(file=str(projects / "own_painting" / "config.yaml")).policy.image_scale == 255.0


@pytest.mark.parametrize("name", ["own_dungeon", "own_corridor"])
def test_an_observation_that_says_what_happens_needs_no_captioner(name: str, projects: Path) -> None:
    assert load_config(file=str(projects / name / "config.yaml")).env.captioner == "message"
    assert not (projects / name / "captioner.py").exists()


def test_what_is_rewarded_and_what_is_rare_are_the_first_guess_of_progress(projects: Path) -> None:
    rubric = load_rubric(str(projects / "own_task" / "rubric.yaml"))
    positive = {example.item for example in rubric.examples if example.positive}
    assert positive == {"You open the door with the key.", "You pick up the key."}
    assert "You bump into the wall." in rubric.calibration.items


def test_grids_of_codes_get_their_highest_code_as_scale_and_silence_is_told(projects: Path) -> None:
    assert load_config(file=str(projects / "own_code" / "config.yaml")).policy.image_scale == 5.0
    assert "so there are no captions yet" in (projects / "own_code" / "README.md").read_text()


def test_no_bytecode_lies_beside_the_files(projects: Path) -> None:
    files = {path.name for path in (projects / "own_task").iterdir()}
    assert files == {"environment.py", "captioner.py", "rubric.yaml", "config.yaml", "README.md", "test_own_task.py"}
