"""Builds Delphi's Grafana dashboard from the catalogue of metrics: a row for each group, a panel for each metric or
family of metrics.

Invariant: every metric of the catalogue, those of the terms of the reward included, is on exactly one panel, no panel
queries anything else, and descriptions are the catalogue's.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from cluster.metrics import (
    BY_TERM,
    CATALOGUE,
    GROUPS,
    LEARNERS_TIME,
    OF_TERMS,
    UNDEFINED,
    WORKERS_TIME,
    Group,
    Metric,
)

UID = "delphi"
STACKED = (WORKERS_TIME, LEARNERS_TIME)
SELECTION = 'run=~"$run", SessionName=~"$SessionName"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRAFANA_UNITS = {
    "fraction": "percentunit",
    "s": "s",
    "0 or 1": "none",
    "reward": "short",
    "reward/step": "short",
} | dict.fromkeys(("factor", "loss", "nats", "norm"), "short")
"""Grafana's names of the catalogue's units that are not counts."""
GRAPH_SIZE, STAT_SIZE, ROW_WIDTH = (8, 7), (4, 4), 24
"""Width and height of panels on Grafana's grid, and its width."""
GREEN, ORANGE, RED = "green", "orange", "red"


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    return {
        "uid": UID,
        "title": "Delphi",
        "description": "A run's learning, speed, annotation, reward model and faults; generated from Delphi's catalogue"
        " of metrics.",
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
    """PromQL for the chosen runs' values, NaN while undefined: one line per run, and per term of the reward, also where
    a resumed run is another process or another Ray session."""
    series, lines = (
        f"{metric.exported_as}{{{SELECTION}, {UNDEFINED}=",
        "run, term" if metric.group == BY_TERM else "run",
    )
    return f'max by ({lines}) ({series}""}}) or NaN * max by ({lines}) ({series}"yes"}})'


def families(group: Group) -> dict[str, list[Metric]]:
    """The panels of a group by title, in the catalogue's order."""
    found: dict[str, list[Metric]] = {}
    for metric in (*CATALOGUE, *OF_TERMS):
        if metric.group == group:
            found.setdefault(metric.panel or metric.name.replace("_", " "), []).append(metric)
    return found


def _variables() -> list[dict[str, Any]]:
    datasource = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    start = CATALOGUE[0].exported_as
    return [
        {**datasource, "refresh": 1, "hide": 0},
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
        "refresh": 2,  # on every change of the time range, because runs come and go
        "sort": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _panels() -> Iterator[dict[str, Any]]:
    y, numbers = 0, itertools.count(1)
    for group in GROUPS:
        row = {"id": next(numbers), "type": "row", "title": group.capitalize(), "collapsed": False}
        yield {**row, "gridPos": {"h": 1, "w": ROW_WIDTH, "x": 0, "y": y}, "panels": []}
        y += 1
        draw, (width, height) = (_stat, STAT_SIZE) if group == "faults" else (_graph, GRAPH_SIZE)
        per_line = ROW_WIDTH // width
        for index, (title, metrics) in enumerate(families(group).items()):
            position = {"h": height, "w": width, "x": index % per_line * width, "y": y + index // per_line * height}
            yield {"id": next(numbers), **_panel(title, metrics), **draw(title, metrics), "gridPos": position}
        y += -(-len(families(group)) // per_line) * height


def _panel(title: str, metrics: list[Metric]) -> dict[str, Any]:
    alone = len(metrics) == 1
    legend = "{{run}} {{term}}" if metrics[0].group == BY_TERM else "{{run}}"
    return {
        "title": title,
        "description": "\n\n".join(f"`{m.name}`: {m.meaning}. Healthy: {m.healthy}." for m in metrics),
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query(metric),
                "legendFormat": legend if alone else f"{_short(metric, metrics)} {{{{run}}}}",
                "range": True,
            }
            for index, metric in enumerate(metrics)
        ],
    }


def _graph(title: str, metrics: list[Metric]) -> dict[str, Any]:
    """Lines over time; a metric alone on its panel shows its threshold."""
    stacked = title in STACKED
    drawn: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 40 if stacked else 0, "spanNulls": False}
    drawn |= {"showPoints": "auto", "stacking": {"mode": "normal" if stacked else "none", "group": "A"}}
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
    """The newest value, coloured: a gauge is red where it is unhealthy, a counter orange above its healthy growth."""
    (metric,) = metrics
    undefined = {"match": "null+nan", "result": {"text": "not defined"}}
    mappings: list[dict[str, Any]] = [{"type": "special", "options": undefined}]
    if metric.unit == "0 or 1":
        mappings.append({"type": "value", "options": {"0": {"text": "down"}, "1": {"text": "up"}}})
    defaults = {"unit": _unit(metric), "color": {"mode": "thresholds"}, "thresholds": _thresholds(metric)}
    return {
        "type": "stat",
        "fieldConfig": {"defaults": {**defaults, "mappings": mappings}, "overrides": []},
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "textMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


def _thresholds(metric: Metric) -> dict[str, Any]:
    """Grafana colours from a step's value upwards; counters are whole numbers, so above 0 means from 1."""
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
    """The metric's name without the first and last words that all metrics of its panel share."""
    names, own = [m.name.split("_") for m in family], metric.name.split("_")
    for _ in ("first", "last"):
        while all(len(name) > 1 for name in names) and len({name[0] for name in names}) == 1:
            names, own = [name[1:] for name in names], own[1:]
        names, own = [name[::-1] for name in names], own[::-1]
    return " ".join(own)
