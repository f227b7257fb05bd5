"""Builds Delphi's Grafana dashboard from the catalogue of metrics: a row for each group, a panel for each metric or family of metrics.

Invariant: every catalogue metric is on exactly one panel and no panel asks for anything else; what a panel says of a metric is what
the catalogue says.
"""

from collections.abc import Iterator
from typing import Any

from cluster.metrics import CATALOGUE, GROUPS, UNDEFINED, Group, Metric

UID = "delphi"
STACKED = ("time of the workers", "time of the learner")
"""Panels whose metrics are shares of one whole."""
SELECTION = 'run=~"$run", SessionName=~"$SessionName"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRAFANA_UNITS = {
    "fraction": "percentunit",
    "s": "s",
    "0 or 1": "none",
    "reward": "short",
    "reward/step": "short",
} | dict.fromkeys(("factor", "loss", "nats", "norm"), "short")
"""The catalogue's units that are no count of something, as Grafana writes them."""
GRAPH_SIZE, STAT_SIZE, ROW_WIDTH = (8, 7), (4, 4), 24
"""Width and height of panels on Grafana's grid, and its width."""
GREEN, ORANGE, RED = "green", "orange", "red"


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    return {
        "uid": UID,
        "title": "Delphi",
        "description": "A run's learning, speed, annotation, reward model and faults; generated from Delphi's catalogue of metrics.",
        "tags": ["delphi", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": list(_panels()),
    }


def query(metric: Metric) -> str:
    """PromQL for the chosen runs' values, NaN while undefined: one line per run, also where a resumed run is another process or another
    Ray session."""
    name = metric.exported_as
    return f'max by (run) ({name}{{{SELECTION}, {UNDEFINED}=""}}) or NaN * max by (run) ({name}{{{SELECTION}, {UNDEFINED}="yes"}})'


def families(group: Group) -> dict[str, list[Metric]]:
    """The panels of a group by title, in the catalogue's order."""
    found: dict[str, list[Metric]] = {}
    for metric in CATALOGUE:
        if metric.group == group:
            found.setdefault(metric.panel or metric.name.replace("_", " "), []).append(metric)
    return found


def _variables() -> list[dict[str, Any]]:
    datasource = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
    }
    start = CATALOGUE[0].exported_as
    return [
        datasource,
        _label_values("SessionName", "Ray session", f"label_values({start}, SessionName)"),
        _label_values("run", "run", f'label_values({start}{{SessionName=~"$SessionName"}}, run)'),
    ]


def _label_values(name: str, label: str, definition: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": definition,
        "query": {"query": definition, "refId": name},
        "refresh": 2,  # with every change of the time range: runs come and go
        "sort": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _panels() -> Iterator[dict[str, Any]]:
    y, number = 0, 0
    for group in GROUPS:
        number += 1
        position = {"h": 1, "w": ROW_WIDTH, "x": 0, "y": y}
        yield {
            "id": number,
            "type": "row",
            "title": group.capitalize(),
            "collapsed": False,
            "gridPos": position,
            "panels": [],
        }
        y += 1
        draw, (width, height) = (_stat, STAT_SIZE) if group == "faults" else (_graph, GRAPH_SIZE)
        per_line = ROW_WIDTH // width
        for index, (title, metrics) in enumerate(families(group).items()):
            number += 1
            position = {"h": height, "w": width, "x": index % per_line * width, "y": y + index // per_line * height}
            yield {"id": number, **_panel(title, metrics), **draw(title, metrics), "gridPos": position}
        y += -(-len(families(group)) // per_line) * height


def _panel(title: str, metrics: list[Metric]) -> dict[str, Any]:
    alone = len(metrics) == 1
    return {
        "title": title,
        "description": "\n\n".join(f"`{m.name}`: {m.meaning}. Healthy: {m.healthy}." for m in metrics),
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query(metric),
                "legendFormat": "{{run}}" if alone else f"{_short(metric, metrics)} {{{{run}}}}",
                "range": True,
            }
            for index, metric in enumerate(metrics)
        ],
    }


def _graph(title: str, metrics: list[Metric]) -> dict[str, Any]:
    """Lines over time; a metric that has the panel to itself shows where it turns red."""
    stacked = title in STACKED
    drawn: dict[str, Any] = {
        "lineWidth": 1,
        "fillOpacity": 40 if stacked else 0,
        "spanNulls": False,
        "showPoints": "auto",
    }
    drawn["stacking"] = {"mode": "normal" if stacked else "none", "group": "A"}
    defaults: dict[str, Any] = {"unit": _unit(metrics[0])}
    (metric, *others) = metrics
    if not others and metric.kind == "gauge" and (metric.red_above, metric.red_below) != (None, None):
        drawn["thresholdsStyle"] = {"mode": "dashed"}
        defaults["thresholds"] = _thresholds(metric)
    if stacked:
        defaults |= {"min": 0, "max": 1}
    return {
        "type": "timeseries",
        "fieldConfig": {"defaults": {**defaults, "custom": drawn}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "none"},
        },
    }


def _stat(title: str, metrics: list[Metric]) -> dict[str, Any]:
    """The newest value, coloured: a gauge red where it is unhealthy, a counter orange once it is above what is healthy."""
    (metric,) = metrics
    mappings: list[dict[str, Any]] = [
        {"type": "special", "options": {"match": "null+nan", "result": {"text": "not defined"}}}
    ]
    if metric.unit == "0 or 1":
        mappings.append({"type": "value", "options": {"0": {"text": "down"}, "1": {"text": "up"}}})
    defaults = {
        "unit": _unit(metric),
        "color": {"mode": "thresholds"},
        "thresholds": _thresholds(metric),
        "mappings": mappings,
    }
    return {
        "type": "stat",
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "textMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


def _thresholds(metric: Metric) -> dict[str, Any]:
    """Grafana colours from a step's value upwards; counters are whole numbers, so that above 0 is from 1."""
    alarm = ORANGE if metric.kind == "counter" else RED
    steps: list[dict[str, Any]] = [{"color": GREEN, "value": None}]
    if metric.red_below is not None:
        steps = [{"color": alarm, "value": None}, {"color": GREEN, "value": metric.red_below}]
    if metric.red_above is not None:
        steps.append({"color": alarm, "value": metric.red_above + (1 if metric.kind == "counter" else 0)})
    return {"mode": "absolute", "steps": steps}


def _unit(metric: Metric) -> str:
    return GRAFANA_UNITS.get(metric.unit, f"count:{metric.unit}")


def _short(metric: Metric, family: list[Metric]) -> str:
    """What tells a metric from those that it shares a panel with."""
    words = [m.name.split("_") for m in family]
    parts = metric.name.split("_")
    while all(len(word) > 1 for word in words) and len({word[0] for word in words}) == 1:
        words, parts = [word[1:] for word in words], parts[1:]
    while all(len(word) > 1 for word in words) and len({word[-1] for word in words}) == 1:
        words, parts = [word[:-1] for word in words], parts[:-1]
    return " ".join(parts)
