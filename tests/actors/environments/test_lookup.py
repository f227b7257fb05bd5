"""What cannot be found or imported under an environment's id: what is missing, and what to do, in one line."""

import re
from typing import Any

import gymnasium
import pytest
from gymnasium.error import DependencyNotInstalled

from actors.environments.errors import EnvironmentFailure
from actors.environments.lookup import find_environment, load_creator
from tests.odd_environments import ODD, SINGLE, make_odd, raising


def test_a_module_that_lacks_a_package_or_raises_as_it_is_imported_says_so(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lacking.py").write_text("import no_such_simulator.core\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "leaving.py").write_text("import sys; sys.exit('no display')\n")
    for module, message in (
        ("lacking", "names the module 'lacking', which needs the package no_such_simulator"),
        ("broken", "environment 'broken:X-v0' raised SyntaxError in import"),
        ("leaving", "environment 'leaving:X-v0' raised SystemExit in import: no display"),
        ("absent", "names the module 'absent', which cannot be imported"),
    ):
        with pytest.raises(ValueError) as caught:
            find_environment(f"{module}:X-v0")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ImportError("libGL.so.1: cannot open shared object file\n\nREAD THIS"),
            "needs the package minigrid, which is there but cannot be imported: ImportError: libGL.so.1: cannot open"
            " shared object file READ THIS",
        ),
        (
            ModuleNotFoundError("No module named 'pygame'", name="pygame"),
            "needs the package minigrid, which needs the package pygame (No module named 'pygame'); install both:"
            " pip install 'delphi-rl[minigrid]'",
        ),
    ],
)
def test_a_known_package_that_is_there_but_lacks_something_says_what(
    error: ImportError, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> None:
        raise error

    monkeypatch.setattr("actors.environments.lookup.importlib.import_module", import_module)
    with pytest.raises(EnvironmentFailure, match=re.escape(message)):
        find_environment("MiniGrid-Odd-v9")


def test_a_class_without_a_registration_and_a_file_for_a_module_say_what_to_give() -> None:
    for name in ("Odd", "Deadline-v3"):
        kind, _, version = name.partition("-v")
        with pytest.raises(ValueError) as caught:
            find_environment(f"{ODD}{name}")
        register = f"add gymnasium.register('{kind}-v{version or 0}', entry_point={kind}) to it"
        assert f"tests.odd_environments has {kind}, but does not register it: {register}" in str(caught.value)
    for path in ("odd.py", "./odd.py", "/some/folder/odd.py", "../odd"):
        with pytest.raises(
            ValueError, match="which is a path; give the module's name, as in odd:X-v0, with its folder"
        ):
            find_environment(f"{path}:X-v0")


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("no_such_package.core:Env", r"\(No module named 'no_such_package'\); install the package no_such_package"),
        ("tests.no_such_module:Env", r"\(No module named 'tests.no_such_module'\); install the module tests.no_such"),
        ("tests.odd_environments:Absent", "from its entry point .* has no attribute 'Absent'.*must be module:Class"),
        ("Odd", "from its entry point 'Odd' .*must be module:Class or module:function"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_said(entry_point: str, message: str) -> None:
    with pytest.raises(EnvironmentFailure, match=f"environment 'Nowhere-v0' cannot be loaded .*{message}"):
        load_creator(gymnasium.envs.registration.EnvSpec("Nowhere-v0", entry_point))


def test_a_package_that_is_missing_only_as_the_environment_is_made_is_named() -> None:
    with pytest.raises(
        EnvironmentFailure, match=r"raised ModuleNotFoundError in making: .*; it needs the package box: install it"
    ):
        make_odd(making=raising(ModuleNotFoundError("No module named 'box.core'", name="box.core")))
    words = "Box2D is not installed, you can install it by `pip install gymnasium[box2d]`"
    with pytest.raises(EnvironmentFailure, match=re.escape(f"{SINGLE} needs a package that is not installed: {words}")):
        make_odd(making=raising(DependencyNotInstalled(words)))


@pytest.mark.parametrize(
    ("env_id", "extra"),
    [("MiniGrid-DoorKey-8x8-v9", "minigrid"), ("ALE/Adventure-v99", "ale-py"), ("CrafterReward-v1", "crafter")],
)
def test_ids_of_known_packages_say_what_installs_them(env_id: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("minigrid", "ale_py", "crafter"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=rf"needs the package .*pip install '.*{extra}"):
        find_environment(env_id)
