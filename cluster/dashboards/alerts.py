"""Builds Prometheus' alert rules from the catalogue of metrics: one for each bound that it declares.

Invariant: neither an undefined metric nor the end of a run raises an alert.
"""

from typing import Any

from cluster.metrics import CATALOGUE, UNDEFINED, Metric

WINDOW = "10m"
"""How long a gauge must be beyond its bound, and the window of a counter's growth."""


def rules() -> dict[str, Any]:
    """The content of a Prometheus rule file."""
    found = []
    for metric in CATALOGUE:
        if metric.red_above is not None:
            found.append(_rule(metric, ">", metric.red_above))
        if metric.red_below is not None:
            found.append(_rule(metric, "<", metric.red_below))
    return {"groups": [{"name": "delphi", "rules": found}]}


def _rule(metric: Metric, sign: str, bound: float) -> dict[str, Any]:
    """`delta`, not `increase`, which counts all of a counter as growth where a resumed run sets it back."""
    gauge = metric.kind == "gauge"
    defined = f'{metric.exported_as}{{{UNDEFINED}=""}}'
    value = defined if gauge else f"delta({defined}[{WINDOW}])"
    name = "".join(word.capitalize() for word in metric.name.split("_"))
    what = "is {{ $value | humanize }}" if gauge else f"grew by {{{{ $value | humanize }}}} in {WINDOW}"
    return {
        "alert": f"Delphi{name}{'High' if sign == '>' else 'Low'}",
        "expr": f"max by (run, SessionName) ({value}) {sign} {bound:g}",
        **({"for": WINDOW} if gauge or sign == "<" else {}),  # a new counter has not grown either
        "labels": {"severity": "warning" if metric.group == "faults" or not gauge else "info"},
        "annotations": {
            "summary": f"{metric.name} of run {{{{ $labels.run }}}} {what} (healthy: {metric.healthy})",
            "description": metric.meaning,
        },
    }
