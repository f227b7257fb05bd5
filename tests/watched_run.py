"""A run with a Prometheus beside it that scrapes Ray's endpoint as Ray's own files tell it to.

Invariant: Ray's configuration is used as it is, but for the interval, which is a second, and the alert rules, which are
added.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.dashboards.command import files
from cluster.run.temporary import ray_directory
from tests.prometheus_server import Prometheus, programs, running
from tests.run_processes import end_processes, start_run, wait_until


@dataclass(frozen=True)
class WatchedRun:
    """The run's parts as a test needs them."""

    run_dir: Path
    log: Path
    process: subprocess.Popen
    prometheus: Prometheus
    alerts: Path

    @property
    def session(self) -> Path:
        """Ray's folder for this run."""
        return _ray(self.run_dir) / "session_latest"

    def targets(self) -> list[str]:
        """Addresses of Ray's metrics endpoints."""
        return json.loads((_ray(self.run_dir) / "prom_metrics_service_discovery.json").read_text())[0]["targets"]

    def scraped(self, env_steps: int) -> bool:
        """Whether Prometheus has seen the run at that step or later."""
        found = self.prometheus.get("query", query="ray_delphi_env_steps")["result"]
        return any(float(series["value"][1]) >= env_steps for series in found)


@contextmanager
def watched_run(work: Path, name: str, *settings: str) -> Iterator[WatchedRun]:
    """`delphi train` in the background until the block ends. Raises prometheus_server.NotToBeHad before it starts
    anything."""
    folder = programs()
    run_dir, log, alerts, configuration = (
        work / name,
        work / "output.txt",
        work / "alerts.yaml",
        work / "prometheus.yml",
    )
    process = start_run(run_dir, log, *settings, env=os.environ | {"RAY_metrics_report_interval_ms": "2000"})
    try:
        by_ray = _ray(run_dir) / "session_latest" / "metrics" / "prometheus" / "prometheus.yml"
        discovery = _ray(run_dir) / "prom_metrics_service_discovery.json"
        wait_until(
            lambda: by_ray.exists() and discovery.exists() and json.loads(discovery.read_text())[0]["targets"],
            process,
            log,
        )
        alerts.write_text(files()["delphi_alerts.yaml"])
        adapted = yaml.safe_load(by_ray.read_text())
        assert adapted["global"]["scrape_interval"] == "10s"
        adapted["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        configuration.write_text(yaml.safe_dump(adapted | {"rule_files": [str(alerts)]}))
        with running(folder, configuration, work / "data") as prometheus:
            yield WatchedRun(run_dir, log, process, prometheus, alerts)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            end_processes(run_dir)


def _ray(run_dir: Path) -> Path:
    return ray_directory(str(run_dir))
