"""Trackers in their own processes, told by files as a run writes them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.launch import launch
from cluster.run.directory import RunDirectory
from cluster.trackers.backends import check_trackers
from cluster.trackers.child import MetricLines, redacted, told_at_the_end
from cluster.trackers.tracking import Tracking
from configs.checks import ConfigError
from configs.loading import load_config
from configs.schema import RunConfig

RECORDERS = "tests.cluster.trackers.recorders"
EVALUATION = {"policy": {"return": {"mean": 2.0, "low": 1.0, "high": 3.0}}, "words": "2 [1, 3]", "episodes": 9}


def config_of(run: Path, *trackers: str, **settings: Any) -> RunConfig:
    named = ",".join(f"'{RECORDERS}:{tracker}'" for tracker in trackers)
    overrides = [f"logging.{name}={value}" for name, value in settings.items()]
    return load_config(
        preset="debug", overrides=[f"run_dir={run}", f"logging.trackers=[{named}]", "seed=7", *overrides]
    )


def write(run: Path, *steps: int | None) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"env_steps": n, "episodes_total": n, "entropy": None}) + "\n" for n in steps)


def told(run: Path, kind: str) -> list[Any]:
    if not (run / "told.jsonl").exists():
        return []
    return [what for first, *what in map(json.loads, (run / "told.jsonl").read_text().splitlines()) if first == kind]


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_tracker_is_told_every_line_once_and_a_resumed_run_continues_the_same_tracked_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECORDER_SETTING", "the user's")
    said: list[str] = []
    config = config_of(tmp_path, "Recorder", tracker_run_name="mine", tracker_tags="[a, b]")
    run = RunDirectory(tmp_path)
    write(tmp_path, 0, 10)
    first = Tracking(config, run, said.append)
    wait_for(lambda: len(told(tmp_path, "line")) == 2)
    write(tmp_path, 20)
    wait_for(lambda: len(told(tmp_path, "line")) == 3)
    first.close(30)  # the run failed before it had an outcome

    run.supersede_metrics(10)  # as the loop does that goes on from a checkpoint
    second = Tracking(config, run, said.append)
    write(tmp_path, 15, 25)
    (tmp_path / "summary.json").write_text(json.dumps({"evaluation": EVALUATION, "ended_by": "max_time_s"}))
    second.outcome = "finished"
    second.close(30)
    tags = [config.env.id, "retrieval", "a", "b"]
    assert told(tmp_path, "begin") == [
        [None, "mine", tags, 7, "the user's"],
        ["first", "mine", tags, 7, "the user's"],
    ]
    assert [steps for steps, _ in told(tmp_path, "line")] == [0, 10, 20, 25], "the repeated steps are not told again"
    assert [outcome for outcome, *_ in told(tmp_path, "end")] == ["failed", "finished"]
    (_, nothing, _), (_, numbers, texts) = told(tmp_path, "end")
    assert nothing == {}, "an earlier summary is not that of a failed run"
    assert numbers["evaluation/policy/return/low"] == 1.0
    assert texts == {"evaluation": "2 [1, 3]", "ended_by": "max_time_s"}
    assert said == [f"tracker {RECORDERS}:Recorder: a file of https://***@host"] * 2


def test_a_run_tells_its_trackers_from_its_first_line_to_its_summary(tmp_path: Path) -> None:
    settings = [
        f"run_dir={tmp_path}",
        f"logging.trackers=['{RECORDERS}:Recorder','{RECORDERS}:DyingRecorder']",
        "env.id=tests.toy_environments:Corridor-v0",
        "total_env_steps=2048",
        "actors.envs_per_worker=8",
        "reward_model.name=counts",
        "logging.interval_env_steps=1024",
        "logging.console=quiet",
        "logging.tensorboard=false",
    ]
    assert launch(load_config(preset="debug", overrides=settings)) == 0
    written = [json.loads(line)["env_steps"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(written) >= 2
    assert [steps for steps, _ in told(tmp_path, "line")] == written
    ((outcome, _, texts),) = told(tmp_path, "end")
    assert (outcome, texts["ended_by"]) == ("finished", "total_env_steps")
    assert "DyingRecorder is left out: its process was ended by signal 9" in (tmp_path / "log.txt").read_text()


def test_trackers_that_fail_die_or_hang_are_reported_once_and_hold_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECORDER_TOKEN", "open sesame")
    said: list[str] = []
    names = "FailingRecorder", "DyingRecorder", "HangingRecorder"
    config = config_of(tmp_path, *names)
    began = time.monotonic()
    tracking = Tracking(config, RunDirectory(tmp_path), said.append)
    assert time.monotonic() - began < 10, "no start waits for a tracker"
    write(tmp_path, 1, 2, 3)
    wait_for(lambda: sum("left out" in text for text in said) == 2)
    began = time.monotonic()
    tracking.outcome = "finished"
    tracking.close(1)
    assert time.monotonic() - began < 20
    reports = sorted(text.partition("left out, the run goes on: ")[2] for text in said if "left out" in text)
    assert reports == [
        "OSError: https://***@host is down",
        "did not take everything within 1 s (logging.tracker_deadline_s); the same command later delivers the rest",
        "its process was ended by signal 9",
    ]
    assert "sesame" not in "".join(path.read_text() for path in tmp_path.iterdir())
    known = json.loads((tmp_path / "trackers.json").read_text())
    assert [known[f"{RECORDERS}:{name}"]["env_steps"] for name in names] == [1, -1, -1]

    monkeypatch.setenv("RECORDER_ANSWERS", "yes")
    (tmp_path / "told.jsonl").unlink()
    again = Tracking(config_of(tmp_path, "HangingRecorder"), RunDirectory(tmp_path), said.append)
    again.outcome = "stopped"
    again.close(30)
    assert [steps for steps, _ in told(tmp_path, "line")] == [1, 2, 3], "the rest, at the next start"


def test_a_tracker_that_cannot_begin_is_reported_with_its_reason(tmp_path: Path) -> None:
    said: list[str] = []
    tracking = Tracking(config_of(tmp_path, "Absent"), RunDirectory(tmp_path), said.append)
    tracking.close(30)
    assert len(said) == 1
    assert "has no attribute 'Absent'" in said[0]


def test_lines_are_read_whole_and_each_once_while_the_file_grows_or_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = MetricLines(path, env_steps=10)

    def new() -> list[int]:
        return [line["env_steps"] for line in lines.new()]

    assert new() == []
    write(tmp_path, 10, 20, None)
    path.write_text(path.read_text() + "damaged\n" + '{"env_steps": 3')
    assert new() == [20]
    path.write_text(path.read_text() + "0}\n")
    assert new() == [30]
    assert new() == []
    (tmp_path / "kept").write_text('{"env_steps": 20}\n{"env_steps": 40}\n')
    (tmp_path / "kept").replace(path)
    assert new() == [40]


def test_credentials_stay_out_of_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "1234567890")
    text = "401 of https://user:password@host/api?write_token=abc&x=1 with 1234567890"
    assert redacted(text) == "401 of https://***@host/api?write_token=***&x=1 with ***"


def test_an_evaluation_that_failed_is_no_number() -> None:
    assert told_at_the_end({"evaluation": {"problem": "no time"}, "time_s": 3}) == ({"time_s": 3.0}, {})


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("[wandbb]", r"logging.trackers: got 'wandbb' \(did you mean 'wandb'\?\), wanted wandb, mlflow, trackio or"),
        ("[mlflow, mlflow]", "wanted each tracker once"),
        ("['a path/to.py:X']", "wanted wandb, mlflow, trackio or module:Class"),
    ],
)
def test_an_unknown_tracker_is_refused_by_name(value: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(preset="debug", overrides=[f"logging.trackers={value}"])


def test_a_missing_package_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # as its runs leave one in the current folder
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=r"wandb needs the package wandb, .*: pip install 'delphi-rl\[wandb\]'"):
        check_trackers(["wandb"])
    with pytest.raises(ConfigError, match=r"mine:Tracker needs the package mine, .*: put it on the Python path"):
        check_trackers(["mine:Tracker"])
    check_trackers(["json:Tracker"])
