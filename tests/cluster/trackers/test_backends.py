"""Each tracker offline, against its real package, where that is installed: what the package then holds of a run."""

import importlib.util
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.run.directory import RunDirectory
from cluster.trackers.backends import CLASSES
from cluster.trackers.tracking import Tracking
from configs.checks import TRACKERS
from configs.loading import load_config

KEY = "0123456789abcdef0123456789abcdef01234567"
EVALUATION = {"policy": {"return": {"mean": 2.0, "low": 1.0, "high": 3.0}}, "words": "2 [1, 3]"}


def needs(package: str) -> Any:
    found = importlib.util.find_spec(package)
    missing = found is None or found.origin is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install 'delphi-rl[{package}]'")


def track(run: Path, tracker: str) -> list[str]:
    """Two starts of a run, of which the second finishes; what was said."""
    said: list[str] = []
    run.mkdir()
    overrides = [f"run_dir={run}", f"logging.trackers=[{tracker}]", "logging.tracker_project=mine", "seed=7"]
    config = load_config(
        preset="debug",
        overrides=[*overrides, "logging.tracker_tags=[a]"],
    )
    for steps, outcome in ((10, "failed"), (20, "finished")):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"env_steps": steps, "entropy": steps / 10, "grad_norm": None}) + "\n")
        tracking = Tracking(config, RunDirectory(run), said.append)
        (run / "summary.json").write_text(json.dumps({"evaluation": EVALUATION, "time_s": 5.0}))
        tracking.outcome = outcome
        tracking.close(60)
    return said


def contents(*folders: Path) -> bytes:
    return b"".join(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, in which a credential would be found."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", KEY)
    return tmp_path


READ_WANDB = """
import json, struct, sys
from wandb.proto import wandb_internal_pb2
def records(path):  # LevelDB's log format after a header of 7 bytes; a record may be split over blocks of 32 KiB
    data, place, parts = open(path, "rb").read(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""
found = {"history": [], "summary": {}, "config": {}}
for path in sys.argv[1:]:
    for record in records(path):
        if record.HasField("run") and record.run.run_id:
            run = {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
            found |= run | {"tags": list(record.run.tags)}
            found["config"] |= {item.key: item.value_json for item in record.run.config.update}
        if record.HasField("history"):
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            found["history"].append([record.history.step.num, items])
        if record.HasField("summary"):
            keys = {item.key or ".".join(item.nested_key): item.value_json for item in record.summary.update}
            found["summary"] |= keys
        if record.HasField("exit"):
            found["exit"] = record.exit.exit_code
print(json.dumps(found))
"""


def test_the_configuration_knows_the_trackers_that_there_are() -> None:
    assert tuple(CLASSES) == TRACKERS


@needs("wandb")
def test_wandb_offline(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = alone / "first"
    said = track(run, "wandb")
    assert all("wandb sync" in text for text in said), said
    files = sorted(map(str, run.glob("wandb/offline-run-*/*.wandb")))
    output = subprocess.run([sys.executable, "-c", READ_WANDB, *files], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(output.stdout)
    assert found["id"] == json.loads((run / "trackers.json").read_text())["wandb"]["run_id"]
    assert all(found["id"] in file for file in files), "both starts"
    assert (found["name"], found["project"], found["tags"][-1]) == ("first", "mine", "a")
    assert json.loads(found["config"]["seed"]) == 7
    told = [(step, float(items["entropy"])) for step, items in found["history"] if "entropy" in items]
    assert told == [(10, 1), (20, 2)]
    assert float(found["summary"]["evaluation/policy/return/low"]) == 1
    assert found["exit"] == 0
    assert KEY.encode() not in contents(alone)


@needs("wandb")
def test_wandb_without_a_login_or_network_is_left_out(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said = track(alone / "first", "wandb")
    assert len(said) == 2, "once for each start"
    assert all(text.startswith("tracker wandb is left out, the run goes on: ") for text in said)


@needs("mlflow")
@pytest.mark.parametrize("store", ["sqlite:///{}/runs.db", "file://{}/folder"])
def test_mlflow_in_a_local_store(alone: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.format(alone))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    track(alone / "first", "mlflow")
    run_id = json.loads((alone / "first/trackers.json").read_text())["mlflow"]["run_id"]
    read = (
        "import json, sys; from mlflow import MlflowClient; c = MlflowClient(); r = c.get_run(sys.argv[1]);"
        "h = c.get_metric_history(sys.argv[1], 'entropy');"
        "print(json.dumps([r.info.run_name, r.info.status, c.get_experiment(r.info.experiment_id).name, r.data.params,"
        " r.data.metrics, r.data.tags, [(m.step, m.value) for m in h]]))"
    )
    output = subprocess.run([sys.executable, "-c", read, run_id], capture_output=True, text=True, check=True)
    name, status, experiment, params, metrics, tags, history = json.loads(output.stdout.splitlines()[-1])
    assert (name, status, experiment, params["seed"], tags["a"]) == ("first", "FINISHED", "mine", "7", "true")
    assert tags["evaluation"] == "2 [1, 3]"
    assert sorted(history) == [[10, 1.0], [20, 2.0]]
    assert metrics["evaluation/policy/return/high"] == 3.0
    assert KEY.encode() not in contents(alone)


@needs("mlflow")
def test_mlflow_whose_server_is_down_is_left_out(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:open-sesame@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = track(alone / "first", "mlflow")
    assert len(said) == 2
    assert all(text.startswith("tracker mlflow is left out, the run goes on: ") for text in said)
    assert "open-sesame" not in "".join(said)
    assert b"open-sesame" not in contents(alone)


@needs("trackio")
def test_trackio_in_its_local_store(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(alone / "store"))
    track(alone / "first", "trackio")
    run_name = json.loads((alone / "first/trackers.json").read_text())["trackio"]["run_id"]
    with sqlite3.connect(alone / "store/mine.db") as store:
        rows = store.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        configs = store.execute("SELECT config FROM configs").fetchall()
    assert {name for name, _, _ in rows} == {run_name}
    told = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, metrics["entropy"]) for step, metrics in told if "entropy" in metrics] == [(10, 1.0), (20, 2.0)]
    assert told[-1][1]["evaluation/policy/return/low"] == 1.0
    assert [json.loads(config)["seed"] for (config,) in configs] == [7]
    assert KEY.encode() not in contents(alone)
