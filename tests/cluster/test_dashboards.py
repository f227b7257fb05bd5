"""Dashboard and alerts are the catalogue in another form: nothing forgotten, nothing made up; and the verb that writes
them."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from cluster.cli import main
from cluster.dashboards.command import RAY_FOLDER, files, provisioned, rules
from cluster.dashboards.grafana import ROW_WIDTH, dashboard, families
from cluster.metrics import CATALOGUE, GROUPS, OF_TERMS, Metric

PANELS = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
EXPORTED = re.compile(r"ray_delphi_\w+")
BY_EXPORTED = {metric.exported_as: metric for metric in (*CATALOGUE, *OF_TERMS)}


def metrics_of(panel: dict) -> list[Metric]:
    """The metrics that a panel asks for; KeyError for one that the catalogue lacks."""
    return [BY_EXPORTED[name] for target in panel["targets"] for name in set(EXPORTED.findall(target["expr"]))]


def test_every_metric_is_on_one_panel_and_every_panel_shows_only_metrics() -> None:
    shown = [metric for panel in PANELS for metric in metrics_of(panel)]
    assert sorted(metric.name for metric in shown) == sorted(metric.name for metric in BY_EXPORTED.values())
    assert all(len(set(EXPORTED.findall(target["expr"]))) == 1 for panel in PANELS for target in panel["targets"])


def test_a_metric_lies_in_the_row_of_its_group_and_shares_a_panel_only_with_its_own_unit() -> None:
    row = None
    for panel in dashboard()["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        assert {metric.group.capitalize() for metric in metrics_of(panel)} == {row}
        assert len({metric.unit for metric in metrics_of(panel)}) == 1, "one axis, one unit"
        for metric in metrics_of(panel):
            assert metric.meaning in panel["description"]
            assert metric.healthy in panel["description"]


def test_a_metric_without_a_group_of_the_dashboard_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x: got group 'misc', wanted one of learning, "):
        Metric("x", "steps", "counter", "meaning", "0", "misc")  # type: ignore[arg-type]


def test_panels_do_not_overlap_and_stay_on_the_grid() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        area = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not area & cells
        assert all(x < ROW_WIDTH for x, _ in area)
        cells |= area
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(PANELS) + len(GROUPS)


def test_lines_of_a_shared_panel_can_be_told_apart() -> None:
    for panel in PANELS:
        names = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(names)) == len(names)
        assert all("{{run}}" in name for name in names), "runs can be told apart"


def test_bounds_are_the_numbers_that_the_catalogue_calls_healthy() -> None:
    for metric in CATALOGUE:
        below = re.match(r"below ([0-9.]+)(?! %)\b", metric.healthy)
        above = re.match(r"above ([0-9.]+)\b", metric.healthy)
        if below:
            assert metric.red_above == float(below[1]), metric.name
        if above and metric.unit == "fraction":
            assert metric.red_below == float(above[1]), metric.name
        if metric.healthy == "0":
            assert metric.red_above == 0, metric.name
    assert sum(metric.red_above is not None or metric.red_below is not None for metric in CATALOGUE) >= 15


def test_thresholds_and_alerts_turn_at_the_same_values() -> None:
    alerts = {rule["expr"]: rule for group in rules()["groups"] for rule in group["rules"]}
    bounds = [
        (m, sign, bound)
        for m in CATALOGUE
        for sign, bound in ((">", m.red_above), ("<", m.red_below))
        if bound is not None
    ]
    assert len(alerts) == len(bounds)
    for metric, sign, bound in bounds:
        (expression,) = [
            text for text in alerts if metric.exported_as in EXPORTED.findall(text) and f") {sign} " in text
        ]
        assert float(expression.rpartition(" ")[2]) == bound
        assert ("delta(" in expression) == (metric.kind == "counter")
        (panel,) = [panel for panel in PANELS if metric in metrics_of(panel)]
        if panel["type"] == "stat":
            steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            assert len(steps) == 2
            assert steps[1]["value"] == bound + (1 if sign == ">" and metric.kind == "counter" else 0)
            assert (steps[1]["color"] == "green") == (sign == "<")


def test_groups_have_the_panels_that_their_names_promise() -> None:
    assert {metric.name for metrics in families("faults").values() for metric in metrics} >= {
        "worker_restarts",
        "annotator_up",
    }
    assert len(families("throughput and bottleneck")["time of the learner"]) == 6


def test_the_verb_writes_what_grafana_and_prometheus_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--out", str(tmp_path / "a" / "b")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.name: path.read_text() for path in written} == files()
    assert json.loads((tmp_path / "a/b/delphi_grafana_dashboard.json").read_text()) == dashboard()
    assert yaml.safe_load((tmp_path / "a/b/delphi_alerts.yaml").read_text()) == rules()


def test_the_verb_prints_manifests_that_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--kubernetes", "--namespace", "watch"]) == 0
    config_map, rule = yaml.safe_load_all(capsys.readouterr().out)
    assert (config_map["kind"], rule["kind"]) == ("ConfigMap", "PrometheusRule")
    assert {config_map["metadata"]["namespace"], rule["metadata"]["namespace"]} == {"watch"}
    assert config_map["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(config_map["data"]["delphi_grafana_dashboard.json"]) == dashboard()
    assert rule["spec"] == rules()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["dashboard", "--out", str(tmp_path / "file" / "x")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "--out" in error


def test_ray_is_told_of_the_dashboard_only_while_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAY_FOLDER, raising=False)
    with provisioned(tmp_path):
        folder = Path(os.environ[RAY_FOLDER])
        assert json.loads((folder / "delphi_grafana_dashboard.json").read_text()) == dashboard()
    assert RAY_FOLDER not in os.environ, "the next run of this process has a folder of its own"


def test_the_users_own_folder_gets_the_dashboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(RAY_FOLDER, str(tmp_path / "mine"))
    with provisioned(tmp_path / "run"):
        assert os.environ[RAY_FOLDER] == str(tmp_path / "mine")
    assert (tmp_path / "mine" / "delphi_grafana_dashboard.json").exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv(RAY_FOLDER, str(tmp_path / "file" / "x"))
    with provisioned(tmp_path / "run"):
        pass
    assert "no dashboard for Grafana" in caplog.text, "and the run goes on"
