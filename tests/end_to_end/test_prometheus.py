"""A real run scraped by a real Prometheus as Ray tells it to: every catalogue metric arrives, every panel and alert
finds its data.

Two to three minutes; `make dashboards` runs it, and so does `.ci/run`.
"""

import functools
import json
import math
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.dashboards.command import files
from cluster.dashboards.grafana import dashboard, query
from cluster.metrics import CATALOGUE
from tests.prometheus_server import NotToBeHad, filled, programs
from tests.run_processes import lines, wait_until
from tests.watched_run import WatchedRun, watched_run

QUERIES = [(panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel.get("targets", [])]
pytestmark = pytest.mark.slow
EVERYTHING = {"run": [".*"], "SessionName": [".*"]}
SETTINGS = [
    "total_env_steps=1000000000",
    "actors.envs_per_worker=8",
    "env.max_episode_steps=60",  # so that episodes end
    "service.engine=scripted",
    "service.script=kill|destroy|level|stairs=0.9",
    "service.store=memory",
    "logging.interval_env_steps=2000",
    "logging.tensorboard=false",
]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedRun]:
    try:
        with watched_run(tmp_path_factory.mktemp("watched"), "watched-run", *SETTINGS) as run:
            yield run
    except NotToBeHad as reason:
        pytest.skip(str(reason))


def test_every_metric_is_at_rays_endpoint_and_every_panel_has_data(watched: WatchedRun) -> None:
    run, prometheus = watched.run_dir.name, watched.prometheus

    def annotated() -> list[dict]:
        return [
            line
            for line in lines(watched.run_dir)
            if line["episodes_total"] and line["annotations_total"] and line["annotator_up"]
        ]

    line = wait_until(annotated, watched.process, watched.log)[0]
    wait_until(lambda: watched.scraped(line["env_steps"]), watched.process, watched.log)
    _check_endpoint(watched)
    start = "ray_delphi_env_steps"
    (session,) = prometheus.label_values("SessionName", start)
    assert session == watched.session.resolve().name
    assert prometheus.label_values("run", f'{start}{{SessionName=~"{session}"}}') == [run]
    chosen = {"run": [run], "SessionName": [session]}
    several = {"run": [run, "another"], "SessionName": [".*"]}
    for variables in (EVERYTHING, chosen, several):
        found = {panel: prometheus.series(filled(panel[1], variables), minutes=5) for panel in QUERIES}
        assert not [panel for panel, series in found.items() if [one["metric"] for one in series] != [{"run": run}]]
        assert all(one["values"] for series in found.values() for one in series)
    nobody = {"run": ["nobody"], "SessionName": [".*"]}
    assert not any(prometheus.series(filled(expression, nobody), minutes=5) for _, expression in QUERIES), (
        "the choice of a run counts"
    )


def _check_endpoint(watched: WatchedRun) -> None:
    texts = []
    for target in watched.targets():
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=120) as response:
            texts.append(response.read().decode())
    text = "\n".join(texts)
    shown = re.findall(r"^(ray_delphi_\w+)\{([^}]*)\}", text, re.MULTILINE)
    assert {name for name, _ in shown} == {metric.exported_as for metric in CATALOGUE}
    assert all(f'run="{watched.run_dir.name}"' in labels for _, labels in shown)
    assert set(re.findall(r"^# TYPE ray_delphi_\w+ (\w+)", text, re.MULTILINE)) == {"gauge"}


def test_prometheus_has_a_number_where_the_metric_lines_have_one_and_nan_elsewhere(watched: WatchedRun) -> None:
    newest = wait_until(lambda: lines(watched.run_dir)[8:], watched.process, watched.log)[-1]
    wait_until(lambda: watched.scraped(newest["env_steps"]), watched.process, watched.log)
    defined = set()
    for metric in CATALOGUE:
        (series,) = watched.prometheus.series(filled(query(metric), EVERYTHING), minutes=5)
        numbers = {float(text) for _, text in series["values"] if not math.isnan(float(text))}
        assert numbers <= {
            float(line[metric.name]) for line in lines(watched.run_dir) if line[metric.name] is not None
        }, metric.name
        defined |= {metric.name} if numbers else set()
    written = lines(watched.run_dir)
    until = next(i for i, line in enumerate(written) if line["env_steps"] == newest["env_steps"])
    always = {name for name in written[0] if all(line[name] is not None for line in written[until - 4 : until + 1])}
    ever = {name for line in written for name, value in line.items() if value is not None}
    assert always <= defined <= ever
    assert {"env_steps_per_s", "entropy", "annotations_total", "annotator_up", "episode_in_game_score_mean"} <= defined
    assert "episode_success_mean" not in defined, (
        "NetHack's score task has no goal: not defined, and yet at the endpoint"
    )
    (undefined,) = watched.prometheus.get("query", query="ray_delphi_episode_success_mean")["result"]
    assert undefined["metric"]["undefined"] == "yes"


def test_prometheus_evaluates_every_alert_and_a_run_in_order_sets_off_none(watched: WatchedRun) -> None:
    check = subprocess.run(
        [programs() / "promtool", "check", "rules", str(watched.alerts)], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr
    expected = [
        rule["alert"] for group in yaml.safe_load(watched.alerts.read_text())["groups"] for rule in group["rules"]
    ]

    def evaluated() -> list[dict]:
        (group,) = watched.prometheus.get("rules")["groups"]
        return group["rules"] if all(rule["health"] != "unknown" for rule in group["rules"]) else []

    found = wait_until(evaluated, watched.process, watched.log)
    assert [rule["name"] for rule in found] == expected
    assert {rule["health"] for rule in found} == {"ok"}
    assert not [rule["name"] for rule in found if rule["state"] == "firing"]


def test_ray_provisions_the_dashboard_beside_its_own(watched: WatchedRun) -> None:
    (provider,) = yaml.safe_load((watched.session / "metrics/grafana/provisioning/dashboards/default.yml").read_text())[
        "providers"
    ]
    folder = Path(provider["options"]["path"])
    assert (folder / "delphi_grafana_dashboard.json").read_text() == files()["delphi_grafana_dashboard.json"]
    assert (folder / "default_grafana_dashboard.json").exists(), "and Ray's own"
    uids = [json.loads(path.read_text())["uid"] for path in folder.glob("*.json")]
    assert len(set(uids)) == len(uids), "Grafana refuses two of one uid"


def test_a_resumed_run_goes_on_with_its_counters_as_one_line_of_the_dashboard(tmp_path: Path) -> None:
    run_dir = tmp_path / "resumed-run"
    resumed_at: dict = {"env_steps": 0}
    for epoch in (1, 2):
        with watched_run(tmp_path, run_dir.name, *SETTINGS) as run:
            goal = resumed_at["env_steps"] + 4000
            reached = functools.partial(lambda goal: lines(run_dir) and lines(run_dir)[-1]["env_steps"] >= goal, goal)
            wait_until(reached, run.process, run.log)
            wait_until(functools.partial(run.scraped, goal), run.process, run.log)
            if epoch == 2:
                _check_counters_of_two_epochs(run, resumed_at)
        resumed_at = lines(run_dir)[-1]


def _check_counters_of_two_epochs(run: WatchedRun, resumed_at: dict) -> None:
    first, second = sorted(run.prometheus.label_values("SessionName", "ray_delphi_env_steps"))
    counters = [
        metric for metric in CATALOGUE if metric.name in ("env_steps", "time_s", "learner_updates", "episodes_total")
    ]
    assert len(counters) == 4
    for metric in counters:
        before, after = [
            [float(text) for _, text in series["values"] if not math.isnan(float(text))]
            for session in (first, second)
            for series in run.prometheus.series(
                filled(query(metric), {"run": [".*"], "SessionName": [session]}), minutes=10
            )
        ]
        assert max(before) <= resumed_at[metric.name] <= min(after), metric.name
        (whole,) = run.prometheus.series(filled(query(metric), EVERYTHING), minutes=10)
        values = [float(text) for _, text in whole["values"] if not math.isnan(float(text))]
        assert values == sorted(values), f"{metric.name} falls in the dashboard's line"
