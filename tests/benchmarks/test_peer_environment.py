"""A peer's environment is made from its script's own words, once, and never half."""

import subprocess
from pathlib import Path

import pytest

from tests.benchmarks import peer_environment
from tests.benchmarks.peer_environment import peer_python, pip_installs


def script(folder: Path, docstring: str) -> Path:
    path = folder / "peer.py"
    path.write_text(f'"""{docstring}"""\n')
    return path


def test_every_installation_of_the_docstring_is_read_in_order(tmp_path: Path) -> None:
    text = (
        "A peer.\n\nSet-up:\n    pip install torch==2.13.0 'setuptools<81' && pip install --no-deps nle==1.3.0\n   "
        " python peer.py\n"
    )
    assert pip_installs(script(tmp_path, text)) == [["torch==2.13.0", "setuptools<81"], ["--no-deps", "nle==1.3.0"]]


@pytest.mark.parametrize("docstring", ["Needs nothing.", "Write pip install x, they say."])
def test_a_script_without_set_up_is_refused_with_a_way_out(tmp_path: Path, docstring: str) -> None:
    with pytest.raises(ValueError, match="--against-python"):
        pip_installs(script(tmp_path, docstring))


def test_what_is_no_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        pip_installs(tmp_path / "missing.py")
    (tmp_path / "peer.py").write_text("print(")
    with pytest.raises(ValueError, match="cannot be read"):
        pip_installs(tmp_path / "peer.py")


def test_a_failed_installation_leaves_nothing_that_could_be_taken_for_an_environment(tmp_path: Path) -> None:
    peer, cache = script(tmp_path, "pip install --no-index delphi-has-no-such-package"), tmp_path / "cache"
    with pytest.raises(ValueError, match="delphi-has-no-such-package failed"):
        peer_python(peer, cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_an_environment_is_made_once_for_the_same_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(peer_environment, "_fill", lambda folder, installs: made.append(installs))
    first = peer_python(script(tmp_path, "pip install a==1"), tmp_path / "cache")
    assert peer_python(script(tmp_path, "Other words.\n\npip install a==1"), tmp_path / "cache") == first
    assert peer_python(script(tmp_path, "pip install a==2"), tmp_path / "cache") != first
    assert made == [[["a==1"]], [["a==2"]]]


def test_torch_is_the_projects_build_only_where_the_peer_names_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_environment.venv, "create", lambda *arguments, **options: None)
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(peer_environment.subprocess, "run", lambda *arguments, **options: done)
    for requirement, constraints in (("torch", "torch==2.13.0\n"), ("torch==2.5.1", "\n")):
        peer_environment._fill(tmp_path, [[requirement]])
        assert (tmp_path / "constraints.txt").read_text() == constraints
