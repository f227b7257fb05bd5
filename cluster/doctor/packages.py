"""`delphi doctor`'s checks of Python: its version, and the packages that pyproject.toml requires.

Invariant: nothing new is imported into this process; a package that crashes crashes another process.
"""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from cluster.doctor.result import CheckResult, failed, ok
from cluster.doctor.subject import Subject
from reward_models.interface import Asks

CHECKOUT = Path(__file__).parents[2]
OLDEST_PYTHON = (3, 11)
IMPORT_NAMES = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health.v1.health",
    "grpcio-reflection": "grpc_reflection.v1alpha.reflection",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
    "setuptools": "pkg_resources",
}
PROBE = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
broken = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        broken[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
print("\\n" + json.dumps(broken))
"""
IMPORT_TIMEOUT_S = 120.0


def check_python(subject: Subject) -> CheckResult:
    """The version of Python."""
    found = f"{sys.version.split()[0]} ({sys.executable})"
    if sys.version_info < OLDEST_PYTHON:
        return failed("python", found, "install Python 3.11 or newer, and Delphi in it")
    return ok("python", found)


def check_packages(subject: Subject) -> CheckResult:
    """The required packages and the extras that this configuration uses: installed, compatible, importable."""
    extras = needed_extras(subject)
    requirements = [requirement for requirement, extra in _requirements() if not extra or extra in extras]
    missing, unfit, names = [], [], []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(str(requirement))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unfit.append(f"{requirement.name} {version} (wanted {requirement.specifier})")
        names.append(IMPORT_NAMES.get(requirement.name.lower(), requirement.name.lower().replace("-", "_")))
    broken = _broken_imports(names)
    wrong = [
        *([f"missing: {', '.join(missing)}"] if missing else []),
        *([f"of another version: {', '.join(unfit)}"] if unfit else []),
        *(f"{name} cannot be imported ({reason})" for name, reason in broken.items()),
    ]
    if wrong:
        chosen = f"[{','.join(sorted(extras))}]" if extras else ""
        advice = f"run `make setup` in a checkout, or `pip install 'delphi-rl{chosen}'`"
        return failed("packages", "; ".join(wrong), advice)
    used = f", with the extras {', '.join(sorted(extras))}" if extras else ""
    return ok("packages", f"{len(requirements)} packages fit and can be imported{used}")


def needed_extras(subject: Subject) -> set[str]:
    """The extras of pyproject.toml that this configuration uses."""
    game = subject.config.env.id.rpartition(":")[2].lower().rpartition("/")[2]
    kinds = {"nethack": {"nle"}, "minihack": {"nle", "minihack"}, "minigrid-": {"minigrid"}, "babyai-": {"minigrid"}}
    extras = next((set(extras) for start, extras in kinds.items() if game.startswith(start)), set())
    plan = subject.plan
    if plan.loads_language_model or (plan.starts_service and plan.asks is Asks.EMBEDDINGS):
        extras.add("local-llm")
    return extras


def _requirements() -> list[tuple[Requirement, str]]:
    """Requirements with their extra ("" for none), of the checkout or else of the installed package."""
    file = CHECKOUT / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text())["project"]
        extras = project["optional-dependencies"]
        pairs = [
            *((text, "") for text in project["dependencies"]),
            *((text, extra) for extra in extras for text in extras[extra]),
        ]
        return [(Requirement(text), extra) for text, extra in pairs]
    found = []
    for text in importlib.metadata.requires("delphi-rl") or []:
        requirement = Requirement(text)
        marker = str(requirement.marker or "")
        found.append((requirement, marker.partition("extra == ")[2].strip("\"' ")))
    return found


def _broken_imports(names: list[str]) -> dict[str, str]:
    """Import name -> reason; imported in another process, which a broken library may crash."""
    command = [sys.executable, "-c", PROBE, *names]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"one of them": f"not done after {IMPORT_TIMEOUT_S:.0f} s"}
    if result.returncode != 0:
        return {"one of them": f"Python ended with {result.returncode}: {result.stderr.strip()[-200:]}"}
    return json.loads(result.stdout.strip().splitlines()[-1])
