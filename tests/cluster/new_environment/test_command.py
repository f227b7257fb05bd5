"""What `delphi new-environment` refuses is one line, and leaves nothing behind."""

from pathlib import Path

import pytest

from cluster.cli import main
from tests.refusals import assert_refused


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("3d", ["'3d'", "letters, digits and underscores"]),
        ("my-task", ["'my-task'", "as in my_task"]),
        ("class", ["'class'", "letters"]),
        ("actors", ["'actors'", "another name"]),
        ("json", ["'json'", "a module of"]),
        ("gymnasium", ["'gymnasium'", "a module of"]),
        ("there", ["there is there already", "--out"]),
    ],
)
def test_a_name_that_cannot_be_a_module_of_its_own(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert_refused(main(["new-environment", name, "--id", "CartPole-v1"]), capsys.readouterr().err, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("CartPol-v1", ["CartPol-v1", "did you mean CartPole"]),
        ("Craftax-Symbolic-v1", ["needs the package craftax", "pip install"]),
        ("absent_module:Env-v0", ["absent_module", "cannot be imported", "PYTHONPATH=."]),
        ("tests.toy_environments:Throttle-v0", ["Throttle-v0", "Discrete actions"]),
        ("tests.cluster.new_environment.small_environments:Broken-v0", ["Broken-v0", "raised KeyError in step"]),
    ],
)
def test_an_environment_that_cannot_be_played(
    env_id: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["new-environment", "own_mistake", "--out", str(tmp_path), "--id", env_id])
    assert_refused(code, capsys.readouterr().err, *words)
    assert not list(tmp_path.iterdir())


def test_a_folder_to_write_into_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["new-environment", "own_task", "--out", str(tmp_path / "absent")])
    assert_refused(code, capsys.readouterr().err, "--out", "a folder that exists")
