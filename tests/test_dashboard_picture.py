"""The picture of the dashboard asks each of its queries, and draws what is not defined as that."""

import math
from pathlib import Path
from typing import Any

from cluster.dashboards.grafana import dashboard
from tests.dashboard_picture import draw
from tests.prometheus_server import filled


class FakePrometheus:
    """Answers every query with a line, or for every third with NaN."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def series(self, expression: str, *, minutes: float, step_s: float) -> list[dict[str, Any]]:
        self.asked.append(expression)
        value = math.nan if len(self.asked) % 3 == 0 else 0.5
        return [{"metric": {"run": "x"}, "values": [(1e9 + 5 * step, str(value * step)) for step in range(3)]}]


def test_every_panels_queries_are_drawn(tmp_path: Path) -> None:
    prometheus = FakePrometheus()
    draw(prometheus, 5, tmp_path / "picture.png")  # type: ignore[arg-type]
    everything = {"run": [".*"], "SessionName": [".*"]}
    assert prometheus.asked == [
        filled(t["expr"], everything) for panel in dashboard()["panels"] for t in panel.get("targets", [])
    ]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
