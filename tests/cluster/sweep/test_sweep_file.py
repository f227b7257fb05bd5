from pathlib import Path

import pytest

from cluster.sweep.sweep_file import read_sweep, selected
from configs.checks import ConfigError

FILE = """
title: Two arms
metric: return
solved: 0.9
episodes: 8
seeds: 2
settings: {total_env_steps: 100, learner: {gamma: 0.5}}
tasks:
  short: {preset: debug, settings: {learner.gamma: 0.6}, arms: {paid: {learner.gamma: 0.8}}}
  long: {preset: debug, without: [paid]}
arms:
  none: {settings: {reward_model.name: none}, seeds: [7, 2, 1]}
  paid: {settings: {learner.gamma: 0.7, service.script: "a: b=1.0"}}
  free:
together: {both: [none, paid]}
compare: [paid, both]
"""


def written(path: Path, text: str) -> Path:
    file = path / "sweep.yaml"
    file.write_text(text)
    return file


def test_runs_are_every_arm_of_every_task_seeds_outermost(tmp_path: Path) -> None:
    sweep = read_sweep(written(tmp_path, FILE))
    runs = list(sweep.runs(tmp_path))
    assert [run.place for run in runs] == [
        "short/none/1",
        "short/paid/1",
        "short/free/1",
        "long/none/1",
        "long/free/1",
        "short/none/2",
        "short/paid/2",
        "short/free/2",
        "long/none/2",
        "long/free/2",
        "short/none/7",
        "long/none/7",
    ]
    assert {run.config.run_dir for run in runs} == {str(tmp_path / "runs" / run.place) for run in runs}
    assert all(run.config.seed == run.seed and run.config.cluster.mode == "inline" for run in runs)


def test_the_nearer_setting_holds(tmp_path: Path) -> None:
    """Of all runs, of a task, of an arm, of an arm in a task."""
    runs = {run.place: run.config for run in read_sweep(written(tmp_path, FILE)).runs(tmp_path)}
    places = ("long/none/1", "short/none/1", "short/free/1", "short/paid/1")
    assert [runs[place].learner.gamma for place in places] == [0.5, 0.6, 0.6, 0.8]
    assert runs["short/paid/1"].service.script == "a: b=1.0"
    assert runs["short/none/1"].reward_model.name == "none"
    assert {config.total_env_steps for config in runs.values()} == {100}


def test_a_task_may_be_a_configuration_file_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("extends: debug\nlearner: {gamma: 0.25}\n")
    sweep = read_sweep(written(tmp_path, "tasks: {own: {config: task.yaml}}\narms: {none: }\nseeds: 1\n"))
    assert [run.config.learner.gamma for run in sweep.runs(tmp_path)] == [0.25]
    assert sweep.title == tmp_path.name


def test_a_part_of_a_sweep_is_chosen_by_names_and_number_of_seeds(tmp_path: Path) -> None:
    sweep = selected(read_sweep(written(tmp_path, FILE)), ["short"], ["none"], 2)
    assert [run.place for run in sweep.runs(tmp_path)] == ["short/none/2", "short/none/7"]
    with pytest.raises(ConfigError, match=r"--arms: there is no arm 'nine' \(did you mean 'none'\?\)"):
        selected(sweep, [], ["nine"], None)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("episodes: 8", "episode: 8", r"the file: unknown key episode \(did you mean 'episodes'\?\)"),
        ("episodes: 8", "episodes: none", "episodes: got 'none', wanted a number of at least 1"),
        ("episodes: 8", "episodes: 0", "episodes: got 0, wanted a number of at least 1"),
        ("seeds: 2", "seeds: 0", "seeds: got 0, wanted a number of seeds"),
        ("seeds: [7, 2, 1]", "seeds: [7, 7]", r"arms.none: got \[7, 7\], wanted a number of seeds"),
        ("short: {preset", "sh/ort: {preset", "tasks: got the name 'sh/ort', wanted letters"),
        ("without: [paid]", "without: [payd]", r"tasks.long.without: there is no arm 'payd' \(did you mean 'paid'\?\)"),
        ("without: [paid]", "without: paid", "tasks.long.without: got text, wanted a list of arms"),
        ("compare: [paid, both]", "compare: [all]", "compare: there is no arm 'all'"),
        ("compare: [paid, both]", "gain: [paid]", "gain: got 1 arms, wanted two"),
        ("compare: [paid, both]", "metrics: kills", "metrics: got text, wanted a list of metrics"),
        ("tasks:", "tasks: \nothers:", "the file: unknown key others"),
        (
            "settings: {total_env_steps: 100,",
            "settings: {total_steps: 100,",
            "task short, arm none: unknown key total_s",
        ),
        ("preset: debug, without", "preset: debog, without", "task long, arm none: unknown preset 'debog'"),
        ("title: Two arms", "title: Two arms\ntitle: three", "key 'title' is given twice"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in FILE
    with pytest.raises(ConfigError, match=message) as error:
        list(read_sweep(written(tmp_path, FILE.replace(before, after))).runs(tmp_path))
    assert "\n" not in str(error.value)


def test_a_file_without_arms_or_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="arms: got nothing, wanted at least one name"):
        read_sweep(written(tmp_path, "tasks: {a: {preset: debug}}\n"))
    with pytest.raises(ConfigError, match="the file: got text, wanted keys with values"):
        read_sweep(written(tmp_path, "hello"))
    with pytest.raises(ConfigError, match=r"cannot read the sweep file .*: No such file"):
        read_sweep(tmp_path / "nothing.yaml")
