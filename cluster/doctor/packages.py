"""`delphi doctor`'s checks of Python: its version, and the packages that pyproject.toml requires.

Invariant: nothing new is imported into this process; a package that crashes crashes another process.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement

from actors.environments.lookup import HOMES
from cluster.doctor.result import CheckResult, failed, ok
from cluster.doctor.subject import Subject
from cluster.run.provenance import CHECKOUT
from configs.checks import TRACKERS

EXTRA = re.compile(r"delphi-rl\[(.+)\]")
IMPORT_NAMES = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health.v1.health",
    "grpcio-reflection": "grpc_reflection.v1alpha.reflection",
    "mlflow-skinny": "mlflow",
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
    return ok(f"{sys.version.split()[0]} ({sys.executable})")


def check_packages(subject: Subject) -> CheckResult:
    """The required packages and the extras that this configuration uses: installed, compatible, importable."""
    extras = needed_extras(subject)
    requirements = _requirements(extras)
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
    wrong = [f"missing: {', '.join(missing)}"] if missing else []
    wrong += [f"of another version: {', '.join(unfit)}"] if unfit else []
    wrong += [f"{name} cannot be imported ({reason})" for name, reason in _broken_imports(names).items()]
    if wrong:
        chosen = f"[{','.join(sorted(extras))}]" if extras else ""
        return failed("; ".join(wrong), f"run `make setup` in a checkout, or `pip install 'delphi-rl{chosen}'`")
    used = f", with the extras {', '.join(sorted(extras))}" if extras else ""
    return ok(f"{len(requirements)} packages fit and can be imported{used}")


def needed_extras(subject: Subject) -> set[str]:
    """The extras of pyproject.toml that this configuration uses."""
    game, plan = subject.config.env.id.rpartition(":")[2].lower(), subject.plan
    package = next((package for start, (_, package) in HOMES.items() if game.startswith(start)), "")
    extras = set(EXTRA.findall(package))
    if "minihack" in extras:
        extras.add("nle")
    if plan.loads_language_model or (plan.starts_service and plan.embeds):
        extras.add("local-llm")
    return extras | (set(TRACKERS) & set(subject.config.logging.trackers))


def _requirements(extras: set[str]) -> list[Requirement]:
    """What the checkout, or else the installed package, requires with these extras."""
    file = CHECKOUT / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text())["project"]
        optional = project["optional-dependencies"]
        texts = [*project["dependencies"], *(text for extra in optional if extra in extras for text in optional[extra])]
    else:
        texts = importlib.metadata.requires("delphi-rl") or []
    chosen = [{"extra": extra} for extra in ("", *extras)]
    requirements = [Requirement(text) for text in texts]
    return [one for one in requirements if one.marker is None or any(map(one.marker.evaluate, chosen))]


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
