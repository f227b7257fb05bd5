"""Finds what makes an environment by its id: imports the package that registers it, and says what is missing.

Invariant: builds no environment; every error is one line that names the id and what to do.
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from actors.environments.errors import EnvironmentFailure, fail

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
    raise ValueError(f"unknown environment id {env_id!r}; {_hint(name, home)}")


def load_creator(spec: EnvSpec) -> Callable[..., Any]:
    """The class or function that makes the environment, without gymnasium's wrappers; ValueError if not loadable."""
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except (ImportError, AttributeError) as error:
        advice = "install the package it belongs to"
        raise EnvironmentFailure(f"environment {spec.id!r} cannot be loaded ({error}); {advice}") from error
    except BaseException as error:
        fail(spec.id, error, "import")
    if creator is None:
        wanted = "choose one that makes single environments"
        raise ValueError(f"environment {spec.id!r} has only a vectorised entry point; {wanted}")
    return creator


def _import_named(env_id: str, module: str) -> None:
    what = f"environment id {env_id!r} names the module {module!r}, which"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            package = error.name.partition(".")[0]
            raise EnvironmentFailure(f"{what} needs the package {package} ({error}); install it") from error
        advice = "install it, or put it on the Python path (PYTHONPATH=. for a file in this folder)"
        raise ValueError(f"{what} cannot be imported ({error}); {advice}") from None
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
        what = f"environment {env_id!r} needs the package {module}, which cannot be imported ({error})"
        raise ValueError(f"{what}; install it with: pip install '{package}'") from None
    except BaseException as error:
        fail(env_id, error, "import")


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
