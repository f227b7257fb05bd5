"""`delphi doctor --json` in this process, in quiet surroundings."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cluster import cli
from cluster.doctor import packages, ray_cluster


def quiet_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of Ray in the environment, a home of its own, and packages imported once for all tests."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # where the packaged model lies unpacked
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ray_cluster, "CURRENT_CLUSTER", tmp_path / "no-cluster")
    monkeypatch.setattr(packages, "_broken_imports", lambda names: {})


def examine(
    capsys: pytest.CaptureFixture[str], *settings: str, preset: str = "debug"
) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code, and results by check."""
    code = cli.main(["doctor", "--quick", "--json", "--preset", preset, *settings])
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (code == 0)
    results: dict[str, list[dict[str, Any]]] = {}
    for result in report["checks"]:
        assert (result["status"] == "ok") != bool(result["advice"]), result
        assert len(result["found"].splitlines()) == 1, result
        results.setdefault(result["check"], []).append(result)
    return code, results
