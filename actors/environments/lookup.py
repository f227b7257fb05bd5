"""Finds what makes an environment by its id: imports the package that registers it, and says what is missing.

Invariant: builds no environment; every error is one line that names the id and what to do.
"""

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from actors.environments.errors import EnvironmentFailure, fail, lacking
from configs.errors import named, one_line

HOMES: Mapping[str, tuple[str, str]] = {
    "nethack": ("nle", "delphi-rl[nle]"),
    "delphi/nethack": ("nle", "delphi-rl[nle]"),
    "minihack": ("minihack", "delphi-rl[minihack]"),
    "minigrid-": ("minigrid", "delphi-rl[minigrid]"),
    "babyai-": ("minigrid", "delphi-rl[minigrid]"),
    "ale/": ("ale_py", "ale-py"),
    "crafter": ("crafter", "crafter"),
    "craftax-": ("craftax", "craftax"),
    "tw-": ("textworld", "textworld"),
    "jericho": ("jericho", "jericho"),
}
"""Prefixes of ids, in lower case -> the module that registers them, and its name for pip."""


def find_environment(env_id: str) -> EnvSpec:
    """The registered specification of `env_id`; builds nothing. Raises ValueError that says what to do."""
    module, _, name = env_id.rpartition(":")
    if module:
        _import_named(env_id, module)
    home = next((home for start, home in HOMES.items() if name.lower().startswith(start)), None)
    if home is not None and (home[0] in ("nle", "minihack") or name not in gymnasium.registry):
        _import_home(env_id, *home)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error:
        pass
    except Exception as error:  # for example of a plug-in of gymnasium
        fail(env_id, error, "import")
    raise ValueError(f"unknown environment id {env_id!r}; {_unregistered(module, name) or _hint(name, home)}")


def load_creator(spec: EnvSpec) -> Callable[..., Any]:
    """The class or function that makes the environment, without gymnasium's wrappers; ValueError if not loadable."""
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except ModuleNotFoundError as error:
        raise EnvironmentFailure(
            f"environment {spec.id!r} cannot be loaded ({error}); install {lacking(error)}"
        ) from error
    except (AttributeError, ValueError) as error:
        what = f"environment {spec.id!r} cannot be loaded from its entry point {spec.entry_point!r} ({error})"
        raise EnvironmentFailure(f"{what}; it must be module:Class or module:function") from error
    except BaseException as error:
        fail(spec.id, error, "import")
    if creator is None:
        wanted = "choose one that makes single environments"
        raise ValueError(f"environment {spec.id!r} has only a vectorised entry point; {wanted}")
    return creator


def _import_named(env_id: str, module: str) -> None:
    what = f"environment id {env_id!r} names the module {module!r}, which"
    if "/" in module or module.startswith(".") or module.endswith(".py"):
        stem = PurePath(module).name.removesuffix(".py")
        advice = f"the module's name, as in {stem}:{env_id.rpartition(':')[2]}, with its folder in PYTHONPATH"
        raise ValueError(f"{what} is a path; give {advice}")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            raise EnvironmentFailure(f"{what} needs {lacking(error)} ({error}); install it") from error
        advice = "install it, or put it on the Python path (PYTHONPATH=. for a file in this folder)"
        raise ValueError(f"{what} cannot be imported ({one_line(error)}); {advice}") from None
    except BaseException as error:
        fail(env_id, error, "import")


def _import_home(env_id: str, module: str, package: str) -> None:
    """Import the package that registers `env_id`; ValueError with the command that installs it if it is missing."""
    try:
        if module in ("nle", "minihack"):
            from actors.environments.nethack.tasks import register_environments

            register_environments(module)
        else:
            importlib.import_module(module)
    except ImportError as error:
        what, advice = f"environment {env_id!r} needs the package {module}, which", f"pip install '{package}'"
        is_absent = isinstance(error, ModuleNotFoundError)
        if is_absent and error.name == module:
            raise ValueError(f"{what} cannot be imported ({one_line(error)}); install it with: {advice}") from None
        if is_absent and error.name:
            raise EnvironmentFailure(f"{what} needs {lacking(error)} ({error}); install both: {advice}") from error
        raise EnvironmentFailure(f"{what} is there but cannot be imported: {named(error)}") from error
    except BaseException as error:
        fail(env_id, error, "import")


def _unregistered(module: str, name: str) -> str:
    """The hint if `module` has a class or function of that name, but registers none."""
    found, _, version = name.rpartition("-v") if re.search(r"-v\d+$", name) else (name, "", "0")
    if not callable(getattr(sys.modules.get(module), found, None)):
        return ""
    register = f"gymnasium.register({f'{found}-v{version}'!r}, entry_point={found})"
    return f"{module} has {found}, but does not register it: add {register} to it, and give {module}:{found}-v{version}"


def _hint(name: str, home: tuple[str, str] | None) -> str:
    old = getattr(getattr(sys.modules.get("gym"), "envs", None), "registration", None)
    if name in getattr(old, "registry", ()):
        return f"it is registered with the old package gym; {WRAP_IT}"
    matches = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.6)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    if home is not None:
        return f"the package {home[0]} is installed, but registers no such environment with gymnasium; {WRAP_IT}"
    return "give a registered id, or module:Id to import its module first"


WRAP_IT = "wrap it in a gymnasium.Env of your own, register that, and give module:Id (docs/environments.md)"
