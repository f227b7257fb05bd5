"""From an environment's id to what makes it: imports the package that registers it, and says what is missing.

Invariant: builds nothing; every error is one line that names the id and what to do.
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
"""How ids begin, in lower case -> the module that knows them, and what pip installs it by."""


def find_environment(env_id: str) -> EnvSpec:
    """The registered specification of `env_id`; builds nothing. Raises ValueError saying what was given and what to do."""
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
    except Exception as error:  # a plug-in of gymnasium's, perhaps
        fail(env_id, error, "import")
    raise ValueError(f"unknown environment id {env_id!r}; {_hint(name, home)}")


def load_creator(spec: EnvSpec) -> Callable[..., Any]:
    """The class or function that makes the environment, without gymnasium's wrappers; ValueError where it cannot be loaded."""
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except (ImportError, AttributeError) as error:
        raise EnvironmentFailure(
            f"environment {spec.id!r} cannot be loaded ({error}); install the package it belongs to"
        ) from error
    except BaseException as error:
        fail(spec.id, error, "import")
    if creator is None:
        raise ValueError(
            f"environment {spec.id!r} has only a vectorised entry point; choose one that makes single environments"
        )
    return creator


def _import_named(env_id: str, module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            package = error.name.partition(".")[0]
            raise EnvironmentFailure(
                f"environment id {env_id!r} names the module {module!r}, which needs the package {package} ({error}); install it"
            ) from error
        raise ValueError(
            f"environment id {env_id!r} names the module {module!r}, which cannot be imported ({error}); "
            "install it, or put it on the Python path (PYTHONPATH=. for a file in this folder)"
        ) from None
    except BaseException as error:
        fail(env_id, error, "import")


def _import_home(env_id: str, module: str, package: str) -> None:
    """Let the package that `env_id` belongs to register it; ValueError with the command that installs what is missing."""
    try:
        if module in ("nle", "minihack"):
            from actors.environments.nethack.tasks import register_environments

            register_environments(module)
        else:
            importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"environment {env_id!r} needs the package {module}, which cannot be imported ({error}); install it with: pip install '{package}'"
        ) from None
    except BaseException as error:
        fail(env_id, error, "import")


def _hint(name: str, home: tuple[str, str] | None) -> str:
    old = sys.modules.get("gym")
    if old is not None and name in getattr(getattr(getattr(old, "envs", None), "registration", None), "registry", ()):
        return f"it is registered with the old package gym; {WRAP_IT}"
    matches = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.6)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    if home is not None:
        return f"the package {home[0]} is installed, and registers no such environment with gymnasium; {WRAP_IT}"
    return "give a registered id, or module:Id to import its module first"


WRAP_IT = "wrap it in a gymnasium.Env of your own, register that, and give module:Id (docs/environments.md)"
