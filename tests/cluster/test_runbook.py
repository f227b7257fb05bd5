"""The runbook, `cluster/README.md`, held to the catalogue of metrics, to the settings and to the files."""

import re
from pathlib import Path

from cluster.metrics import CATALOGUE, NAMES
from configs.fields import field_docs
from configs.schema import RunConfig

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "cluster" / "README.md").read_text()
NEVER_RED = re.compile(r"rises|task dependent|engine dependent|steady|up to annotations_total|seconds")
"""Healthy values of metrics that count progress, or have no bound."""


def section(title: str) -> str:
    _, _, rest = RUNBOOK.partition(f"\n## {title}\n")
    assert rest, title
    return rest.partition("\n## ")[0]


def test_every_gauge_that_can_be_red_has_a_row_and_every_row_a_gauge() -> None:
    rows = [line.split("|") for line in section("When a gauge is red").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    assert named <= NAMES, named - NAMES
    can_be_red = {
        metric.name
        for metric in CATALOGUE
        if not NEVER_RED.match(metric.healthy) or (metric.red_above, metric.red_below) != (None, None)
    }
    assert not can_be_red - named, f"the runbook does not say what to do about {sorted(can_be_red - named)}"
    assert all(row[2].strip() and row[3].strip() for row in rows)


def test_every_setting_that_the_runbook_names_exists() -> None:
    keys = {key for key, _, _ in field_docs(RunConfig)}
    named = set(
        re.findall(
            r"`(?:\w+=)?((?:cluster|actors|learner|annotator|service|reward_model|reward|env|checkpoint|logging)\.\w+)",
            RUNBOOK,
        )
    )
    assert len(named) > 20
    assert not {name for name in named if name not in keys and not name.endswith((".yaml", ".txt", ".log"))} - {
        "service.log"
    }


def test_every_link_of_the_runbook_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in RUNBOOK.splitlines()
        if line.startswith("#")
    }
    targets = re.findall(r"\]\(([^)]+)\)", RUNBOOK)
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (ROOT / "cluster" / path).exists(), target
        assert path or anchor in headings, target
