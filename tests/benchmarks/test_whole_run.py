"""A window's figure comes from the run's own metric lines, and a run that ends or fails is not measured."""

import sys
from pathlib import Path

import pytest

from configs.checks import ConfigError
from configs.schema import PolicyConfig
from tests.benchmarks import whole_run
from tests.benchmarks.marked_processes import Marked
from tests.benchmarks.whole_run import WORKING_POINT, configuration, measure, role_of

FAKE = """
import json, signal, sys, time
from pathlib import Path
run_dir = Path(next(word for word in sys.argv if word.startswith("run_dir=")).partition("=")[2])
run_dir.mkdir()
signal.signal(signal.SIGINT, lambda *_: sys.exit(int({exit_code})))
for time_s, steps in {lines}:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(dict(time_s=time_s, env_steps=steps)) + "\\n")
while {stays}:
    time.sleep(0.05)
print("the last words")
"""
LINES = [(30.0, 1000), (34.0, 2000), (35.0, 4000), (36.0, 9000), (45.5, 25000), (46.0, 90000)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Measures a stand-in for the training run that writes its metric lines at once."""

    def measured(*, stays: bool = True, exit_code: int = 0, **options: float) -> whole_run.Window:
        script = tmp_path / "run.py"
        script.write_text(FAKE.format(lines=LINES, stays=stays, exit_code=exit_code))
        start = Marked.start
        monkeypatch.setattr(
            Marked,
            "start",
            lambda self, command, output: start(self, [sys.executable, str(script), *command[3:]], output),
        )
        return measure([], **{"seconds": 10.0, "warmup_s": 5.0} | options)

    return measured


def test_the_window_opens_after_the_warm_up_and_counts_only_what_lies_in_it(run) -> None:
    window = run()
    assert window.frames_per_s == (25000 - 4000) / (45.5 - 35.0)
    assert window.seconds == 10.5
    assert window.last_line == {"time_s": 45.5, "env_steps": 25000}


def test_a_run_that_ends_by_itself_is_reported_with_its_last_words(run) -> None:
    with pytest.raises(RuntimeError, match="exit code 0:\nthe last words"):
        run(stays=False, seconds=100.0)


def test_a_run_that_stands_still_is_not_measured(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_run, "STALL_LIMIT_S", -99.0)
    with pytest.raises(RuntimeError, match="no metric line"):
        run(seconds=100.0)


def test_a_run_that_fails_when_it_is_stopped_is_not_measured(run) -> None:
    with pytest.raises(RuntimeError, match="exit code 3"):
        run(exit_code=3)


def test_the_working_point_is_one_batch_of_4096_frames_of_the_reference_network() -> None:
    config = configuration(WORKING_POINT)
    assert config.learner.rollouts_per_batch * config.actors.rollout_steps * config.actors.envs_per_worker == 4096
    assert config.policy == PolicyConfig(core_skip=False)
    assert (config.learner.epochs, config.learner.minibatches) == (1, 1)
    assert config.service.engine == "scripted"
    with pytest.raises(ConfigError, match="env_per_worker"):
        configuration(["actors.env_per_worker=3"])


def test_what_is_given_goes_before_the_working_point() -> None:
    assert configuration([*WORKING_POINT, "actors.envs_per_worker=8"]).actors.envs_per_worker == 8
    assert any(setting.startswith("actors.envs_per_worker=") for setting in WORKING_POINT)


def test_processes_are_told_apart_by_what_they_run() -> None:
    commands = {
        "learner": ["ray::LearnerActor.run"],
        "worker": ["ray::WorkerActor.collect"],
        "annotator": ["ray::AnnotatorActor"],
        "service": ["/bin/python", "-m", "llm_server.serve", "--rubric=x"],
        "driver": ["/bin/python", "-m", "cluster.train"],
        "ray": ["/lib/raylet", "--x"],
    }
    assert {role_of(command): command for command in commands.values()} == commands
