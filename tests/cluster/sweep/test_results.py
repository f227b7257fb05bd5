import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.sweep.recorded import take_over
from cluster.sweep.results import collect, is_done
from cluster.sweep.sweep_file import PlannedRun, Sweep, read_sweep
from configs.checks import ConfigError
from configs.loading import experiment_settings, load_config

FILE = """
metric: return
episodes: 4
settings: {total_env_steps: 300}
tasks: {one: {preset: debug}}
arms: {none: }
seeds: 1
"""
LINES = [
    {"env_steps": 100, "episode_return_extrinsic_mean": None},
    {"env_steps": 200, "episode_return_extrinsic_mean": -2.0},
    {"env_steps": 300, "episode_return_extrinsic_mean": -1.0, "policy_state_information": 0.5},
]


@pytest.fixture
def done(tmp_path: Path) -> tuple[PlannedRun, Sweep]:
    (tmp_path / "sweep.yaml").write_text(FILE)
    sweep = read_sweep(tmp_path / "sweep.yaml")
    (run,) = sweep.runs(tmp_path)
    summary = {"env_steps": 300, "finished": True, "time_s": 9.0, "annotations_total": None, "top_rewarded": []}
    players = {"return": {"mean": -1.0}, "length": {"mean": 50.0}, "turns": {"mean": 40.0}}
    write(run, "summary.json", summary)
    write(run, "provenance.json", [{"commit": "a" * 40, "hardware": {"processor": "P"}}])
    write(
        run,
        "evaluation.json",
        {"env_steps": 300, "episodes": 4} | dict.fromkeys(("policy", "blind", "random"), players),
    )
    Path(run.config.run_dir, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return run, sweep


def write(run: PlannedRun, name: str, content: Any) -> None:
    folder = Path(run.config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def test_a_curve_begins_where_the_first_episodes_have_ended(done: tuple[PlannedRun, Sweep]) -> None:
    """No episode has ended is not a return of 0, which would be better than all of these."""
    (figures,) = collect([done[0]], done[1])
    assert figures["curve"] == [[200, -2.0], [300, -1.0]]
    assert figures["over_training"] == -1.5
    assert figures["per_1000_steps"] == -20.0
    assert figures["state_information"] == 0.5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", {"env_steps": 200, "finished": True}),  # the sweep wants more steps now
        ("summary.json", {"env_steps": 300, "finished": False}),
        ("evaluation.json", {"env_steps": 200, "episodes": 4}),  # of an earlier checkpoint
        ("evaluation.json", {"env_steps": 300, "episodes": 3}),  # the sweep wants more episodes now
    ],
)
def test_a_run_is_done_once_it_is_trained_and_evaluated_as_wanted(
    done: tuple[PlannedRun, Sweep], name: str, content: dict[str, Any]
) -> None:
    assert is_done(*done)
    write(done[0], name, content)
    assert not is_done(*done)


def test_a_metric_that_the_evaluation_lacks_is_named_with_its_key(done: tuple[PlannedRun, Sweep]) -> None:
    with pytest.raises(ConfigError, match=r"metrics: got 'kills', but the evaluation of .* has return, length, turns"):
        collect([done[0]], replace(done[1], metrics=("turns", "kills")))


def recorded(done: tuple[PlannedRun, Sweep], **changes: Any) -> Path:
    """The results.json of a sweep with this run, whose directory is gone."""
    (figures,) = collect([done[0]], done[1])
    folder = Path(done[0].config.run_dir)
    results = {"metric": "return", "episodes": 4, "runs": [figures | changes]}
    (folder.parent / "results.json").write_text(json.dumps(results))
    shutil.rmtree(folder)
    return folder.parent / "results.json"


def test_a_run_of_another_machine_counts_with_its_figures(done: tuple[PlannedRun, Sweep]) -> None:
    (figures,) = collect([done[0]], done[1])
    file = recorded(done)
    assert not is_done(*done)
    assert take_over(file, [done[0]], done[1]) == (1, [])
    assert is_done(*done)
    assert collect([done[0]], done[1]) == [figures]
    assert figures["processor"] == "P"


@pytest.mark.parametrize("changes", [{"settings": {"seed": 1, "learner.learning_rate": 0.5}}, {"env_steps": 299}])
def test_a_recorded_run_with_other_settings_or_fewer_steps_is_not_taken_over(
    done: tuple[PlannedRun, Sweep], changes: dict[str, Any]
) -> None:
    assert take_over(recorded(done, **changes), [done[0]], done[1]) == (0, [done[0].place])
    assert not is_done(*done)


@pytest.mark.parametrize("content", ["[]", "{", '{"runs": [], "metric": "success", "episodes": 4}', '{"runs": [{}]}'])
def test_a_file_that_records_no_such_runs_is_refused(done: tuple[PlannedRun, Sweep], content: str) -> None:
    file = recorded(done)
    file.write_text(content)
    with pytest.raises(ConfigError, match="--recorded: "):
        take_over(file, [done[0]], done[1])


def test_a_folder_that_cannot_be_written_is_named(done: tuple[PlannedRun, Sweep]) -> None:
    file = recorded(done)
    Path(f"{done[0].config.run_dir}.figures.json").mkdir()
    with pytest.raises(ConfigError, match=r"--out: cannot write .*figures\.json: .*; choose another --out"):
        take_over(file, [done[0]], done[1])


def test_settings_of_an_experiment_are_those_that_differ_from_the_defaults() -> None:
    config = load_config(layers=[{"seed": 7, "cluster.mode": "inline", "learner.learning_rate": 0.5}])
    assert experiment_settings(config) == {"seed": 7, "learner.learning_rate": 0.5}
