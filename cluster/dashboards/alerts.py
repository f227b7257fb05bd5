"""Builds Prometheus' alert rules from the catalogue of metrics: one for each bound that it declares.

Invariant: a metric that is not defined sets off nothing, nor does a run's end.
"""

from typing import Any

from cluster.metrics import CATALOGUE, UNDEFINED, Metric

WINDOW = "10m"
"""How long a gauge must be beyond its bound, and over what a counter's growth is taken."""


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
    """`delta`, not `increase`: where a resumed run sets a counter back, `increase` would take all that came before for growth."""
    gauge = metric.kind == "gauge"
    defined = f'{metric.exported_as}{{{UNDEFINED}=""}}'
    value = defined if gauge else f"delta({defined}[{WINDOW}])"
    name = "".join(word.capitalize() for word in metric.name.split("_"))
    what = "is {{ $value | humanize }}" if gauge else f"grew by {{{{ $value | humanize }}}} in {WINDOW}"
    return {
        "alert": f"Delphi{name}{'High' if sign == '>' else 'Low'}",
        "expr": f"max by (run, SessionName) ({value}) {sign} {bound:g}",
        **({"for": WINDOW} if gauge or sign == "<" else {}),  # a counter that has just come has not grown either
        "labels": {"severity": "warning" if metric.group == "faults" or not gauge else "info"},
        "annotations": {
            "summary": f"{metric.name} of run {{{{ $labels.run }}}} {what} (healthy: {metric.healthy})",
            "description": metric.meaning,
        },
    }
