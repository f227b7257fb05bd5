"""What a run says of an environment that fails or is not quite what it declares: one line, and in the log where it
comes from."""

import json
from pathlib import Path

import pytest

from cluster.doctor.environment import check_environment
from cluster.doctor.result import CheckResult
from cluster.doctor.subject import Subject
from cluster.launch import launch
from configs.checks import ConfigError
from configs.loading import load_config
from configs.schema import RunConfig


def config_of(env_id: str, run_dir: Path, *settings: str) -> RunConfig:
    small = [
        "actors.envs_per_worker=2",
        "actors.rollout_steps=4",
        "policy.core=none",
        "policy.hidden_size=8",
        "reward_model.name=none",
    ]
    quick = [
        "total_env_steps=16",
        "logging.console=plain",
        "logging.tensorboard=false",
        "learner.epochs=1",
        "learner.minibatches=1",
    ]
    environment = [f"env.id=tests.odd_environments:{env_id}", "env.captioner=info:event"]
    return load_config(preset="debug", overrides=[*small, *quick, *environment, f"run_dir={run_dir}/run", *settings])


def doctor_results(config: RunConfig) -> list[CheckResult]:
    return check_environment(Subject(config))


def test_one_that_raises_as_it_starts_ends_the_command_with_one_line_and_its_traceback_is_in_the_log(
    tmp_path: Path,
) -> None:
    config = config_of("Unreachable-v0", tmp_path)
    with pytest.raises(ConfigError) as caught:
        launch(config)
    log = tmp_path / "run" / "log.txt"
    line = (
        "environment 'Unreachable-v0' raised RuntimeError in reset: no simulator at port 2000; its traceback is in"
        f" {log}"
    )
    assert str(caught.value) == line
    assert "in act\n    raise error\nRuntimeError: no simulator at port 2000" in log.read_text()
    assert [path.name for path in log.parent.iterdir()] == ["log.txt"], "nothing else was begun"
    (result,) = doctor_results(config)
    assert (result.status, result.found) == ("failed", line.partition(";")[0])


def test_its_traceback_is_in_the_log_whatever_characters_it_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"raised RuntimeError in reset: no map caf.*; its traceback is in"):
        launch(config_of("Unprintable-v0", tmp_path))
    assert "RuntimeError: no map caf\\udce9 → ☃\n" in (tmp_path / "run" / "log.txt").read_text("utf-8")


def test_values_that_are_no_numbers_end_a_run_by_the_budget_and_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of("NotANumber-v0", tmp_path, "total_env_steps=1000")
    assert launch(config) == 1
    line = "environment 'NotANumber-v0': observation 'obs' in step got nan, wanted finite numbers of 32 bits"
    assert line in capsys.readouterr().err
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["environment_errors"] >= 4
    assert last["updates_skipped_nonfinite"] == 0
    (result,) = doctor_results(config)
    assert (result.status, result.found) == ("failed", line)


def test_a_longer_limit_and_values_outside_the_space_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of("Unbounded-v0", tmp_path, "env.max_episode_steps=4")
    assert launch(config) == 0
    told, log = capsys.readouterr().out, (tmp_path / "run" / "log.txt").read_text()
    for line in (
        "env.max_episode_steps=4 lets episodes run longer than its own limit of 2 steps",
        "observation 'obs' got 2.0, outside Box(",
    ):
        assert told.count(line) == 1
        assert log.count(line) == 1
    warnings = [result.found for result in doctor_results(config) if result.status == "warning"]
    assert [("its own limit of 2 steps" in found, "got 2.0, outside Box(" in found) for found in warnings] == [
        (True, False),
        (False, True),
    ]
