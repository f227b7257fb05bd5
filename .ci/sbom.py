"""Prints what is installed in .venv, and in .venv-vllm where it is, as a software bill of materials (CycloneDX 1.6, JSON)."""

import json
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

PROJECT = "delphi-rl"
SITE_PACKAGES = "lib/python*/site-packages"


def sbom(folders: list[Path]) -> dict[str, Any]:
    """Every distribution of the folders, what each of them needs of the others, and the licence it states."""
    found = {_reference(d): d for d in distributions(path=[str(folder) for folder in folders])}
    versions: dict[str, list[str]] = {}
    for reference, distribution in found.items():
        versions.setdefault(canonicalize_name(distribution.name), []).append(reference)
    root = next((reference for reference, d in found.items() if d.name == PROJECT), "")
    components = {reference: _component(reference, d) for reference, d in sorted(found.items())}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            **({"component": components.pop(root) | {"type": "application"}} if root else {}),
        },
        "components": list(components.values()),
        "dependencies": [
            {"ref": reference, "dependsOn": sorted({r for name in _needs(d) for r in versions.get(name, [])})}
            for reference, d in found.items()
        ],
    }


def _reference(distribution: Distribution) -> str:
    return f"pkg:pypi/{canonicalize_name(distribution.name)}@{distribution.version.replace('+', '%2B')}"


def _component(reference: str, distribution: Distribution) -> dict[str, Any]:
    metadata = distribution.metadata
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": metadata["Name"],
        "version": metadata["Version"],
        "purl": reference,
    }
    licence = metadata.get("License-Expression")
    if licence:
        component["licenses"] = [{"expression": licence}]
    elif metadata.get("License"):
        component["licenses"] = [{"license": {"name": metadata["License"].split("\n")[0][:200]}}]
    return component


def _needs(distribution: Distribution) -> set[str]:
    needs = set()
    for text in distribution.requires or []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or "extra" in str(requirement.marker) or requirement.marker.evaluate():
            needs.add(canonicalize_name(requirement.name))
    return needs


if __name__ == "__main__":
    json.dump(sbom([path for venv in (".venv", ".venv-vllm") for path in sorted(Path(venv).glob(SITE_PACKAGES))]), sys.stdout, indent=1)
