"""`delphi dashboard`: writes the Grafana dashboard, and Prometheus' alert rules, one for each bound of the catalogue.

Invariant: both are generated from the catalogue of metrics alone; neither an undefined metric nor the end of a run
raises an alert.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.dashboards.grafana import dashboard
from cluster.metrics import CATALOGUE, UNDEFINED, Metric
from configs.paths import path_argument
from llm_server.standard_output import guarded

LOG = logging.getLogger(__name__)
RAY_FOLDER = "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"
"""The folder where a Ray head writes its own dashboards, and from which Grafana provisions them."""
WINDOW = "10m"
"""How long a gauge must be beyond its bound, and the window of a counter's growth."""
GENERATED = "# Generated from cluster/metrics.py by `delphi dashboard`.\n"


def rules() -> dict[str, Any]:
    """The content of a Prometheus rule file."""
    bounds = [(metric, ((">", metric.red_above), ("<", metric.red_below))) for metric in CATALOGUE]
    found = [_rule(metric, sign, bound) for metric, both in bounds for sign, bound in both if bound is not None]
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


def files() -> dict[str, str]:
    """Content by file name."""
    return {
        "delphi_grafana_dashboard.json": json.dumps(dashboard(), indent=1) + "\n",
        "delphi_alerts.yaml": GENERATED + _yaml(rules()),
    }


def manifests(namespace: str) -> str:
    """The same for Kubernetes: a ConfigMap for Grafana's sidecar and a PrometheusRule for Prometheus' operator."""
    content = files()["delphi_grafana_dashboard.json"]
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"delphi_grafana_dashboard.json": content}}
    map_metadata = {"name": "delphi-dashboard", "labels": {"grafana_dashboard": "1"}, "namespace": namespace}
    alerts = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "spec": rules()}
    alerts_metadata = {"name": "delphi-alerts", "labels": {"release": "prometheus"}, "namespace": namespace}
    kinds = (config_map | {"metadata": map_metadata}, alerts | {"metadata": alerts_metadata})
    return GENERATED + "---\n".join(_yaml(kind) for kind in kinds)


@contextlib.contextmanager
def provisioned(directory: Path) -> Iterator[None]:
    """A Ray head that starts meanwhile gives Grafana this dashboard beside its own: from the folder that the user's
    environment names, or else from one in `directory`."""
    chosen = os.environ.get(RAY_FOLDER)
    folder = Path(chosen) if chosen else directory / "grafana"
    try:
        _write(folder)
    except OSError as error:  # no reason to end a run
        LOG.warning("no dashboard for Grafana: cannot write to %s: %s", folder, error)
    with contextlib.ExitStack() as at_end:
        if not chosen:
            os.environ[RAY_FOLDER] = str(folder)
            at_end.callback(os.environ.pop, RAY_FOLDER)
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 2 where the folder cannot be written."""
    arguments = _parser().parse_args(argv)
    if arguments.kubernetes:
        print(manifests(arguments.namespace), end="")
        return 0
    try:
        for path in _write(Path(arguments.out)):
            print(path)
    except OSError as error:
        problem = f"cannot write to --out {arguments.out}: {error.strerror}"
        print(f"delphi dashboard: {problem}; name a folder of your own", file=sys.stderr)
        return 2
    return 0


def _write(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {folder / name: content for name, content in files().items()}
    for path, content in written.items():
        path.write_text(content)
    return list(written)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=140)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi dashboard",
        description="Write Delphi's Grafana dashboard and Prometheus alert rules, both made from the catalogue of"
        " metrics. `cluster.mode=local` puts the dashboard where Ray tells Grafana to look by itself;"
        " cluster/README.md says how on a cluster.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    out = f"folder for both files, made where missing; ${RAY_FOLDER} of a cluster's head"
    kubernetes = "print both for `kubectl apply -f -`: a ConfigMap for Grafana's sidecar and a PrometheusRule"
    namespace = "of --kubernetes: where Grafana and Prometheus run (%(default)s)"
    what.add_argument("--out", type=path_argument, metavar="DIR", help=out)
    what.add_argument("--kubernetes", action="store_true", help=kubernetes)
    parser.add_argument("--namespace", default="monitoring", help=namespace)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
