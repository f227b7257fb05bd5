"""The rubrics that gave a run's labels, as provenance.json records their hashes.

Invariant: labels of two versions of a rubric are never mixed; the same rubric may lie elsewhere.
"""

import contextlib
import json
from pathlib import Path

from cluster.plan import SENSIBLE
from configs.checks import ConfigError
from configs.reward_schema import MAIN_TERM
from configs.terms import setting_of


def rubrics_before(run_dir: Path) -> dict[str, str]:
    """The hash of each rubric that gave the run's labels, by the setting that named it; empty where there is no record,
    or a damaged one."""
    with contextlib.suppress(OSError, ValueError, RecursionError, TypeError, KeyError, IndexError):
        starts = json.loads((run_dir / "provenance.json").read_bytes())
        return hashes_by_setting([str(start["rubric_hash"]) for start in starts if start["rubric_hash"]][-1])
    return {}


def hashes_by_setting(rubric_hash: str | None) -> dict[str, str]:
    """What `cluster.plan.check_rubrics` returns, by the setting that names the rubric."""
    named = [found.rpartition("=") for found in (rubric_hash or "").split()]
    return {rubric_setting(name or MAIN_TERM): found for name, _, found in named}


def rubric_setting(term: str) -> str:
    """The setting that names a term's rubric, or with SENSIBLE that of goals in states."""
    keys = {MAIN_TERM: "annotator.rubric", SENSIBLE: "goals.sensible_rubric"}
    return keys.get(term) or f"{setting_of(term)}.rubric"


def refuse_edited(run_dir: Path, hashes: dict[str, str], before: dict[str, str]) -> None:
    """ConfigError where a rubric has been edited since it gave this run's labels."""
    for key, found in hashes.items():
        if (old := before.get(key, found)) != found:
            raise ConfigError(
                f"{key}: the labels of {run_dir} were made by a rubric of hash {old}, this one has {found}: labels of"
                " two rubrics are not mixed. Undo the edit to continue the run, or give another run_dir= for a new one"
            )
