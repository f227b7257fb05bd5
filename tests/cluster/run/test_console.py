import os
import sys
from types import SimpleNamespace

import pytest

from cluster.run.console import Console
from configs.schema import LoggingConfig
from llm_server.offline.audit import print_table

SUMMARY = {
    "env_steps": 1000,
    "finished": True,
    "episodes_total": 3,
    "episode_return_extrinsic_mean": 1.5,
    "captions_distinct": 7,
    "annotations_total": 5,
    "steps_without_table_fraction": 0.125,
    "top_rewarded": [{"text": "You [b]kill[/b] it!", "reward": 1.0, "probability": 0.75, "count": 12, "term": "main"}],
}


def make(kind: str) -> Console:
    return Console(LoggingConfig(console=kind, console_interval_s=0.0), total_env_steps=1000, mode="local")


def test_plain_lines_show_progress_and_leave_out_what_is_not_defined(capsys: pytest.CaptureFixture[str]) -> None:
    console = make("plain")
    console.update({"env_steps": 100, "entropy": None})
    console.update({"env_steps": 600, "entropy": 1.25, "annotator_up": 1})
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("100/1,000 steps")
    assert "entropy" not in output[0]
    assert "entropy 1.250" in output[1]
    assert "left" in output[1]


@pytest.mark.parametrize(
    ("variables", "on_terminal", "kind"),
    [
        ({"TERM": "xterm"}, True, "rich"),
        ({"TERM": "dumb"}, True, "plain"),  # as in Emacs: a live display would show nothing
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, True, "rich"),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, False, "plain"),  # as in GitHub's workflows
        ({"TERM": "xterm"}, False, "plain"),
    ],
)
def test_a_live_display_is_for_terminals_that_can_show_it(
    variables: dict[str, str], on_terminal: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    controller, terminal = os.openpty()
    with open(controller), open(terminal, "w") as shown, open(os.devnull, "w") as file:
        monkeypatch.setattr(sys, "stdout", shown if on_terminal else file)
        assert make("auto")._kind == kind


def test_the_summary_shows_captions_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    make("plain").summarise(SUMMARY, "runs/x")
    output = capsys.readouterr().out
    assert "runs/x: finished at 1,000 environment steps" in output
    assert "trained before the first reward table came: 12.5% of steps" in output
    assert "You [b]kill[/b] it!" in output
    assert "0.75" in output


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = "runs/[bold]100%[/x] #1 :100:"
    make("plain").say(name)
    print_table({"title": name})
    shown = capsys.readouterr().out
    assert shown.count(name) == 2


def test_a_problem_is_said_once_and_its_end_too(capsys: pytest.CaptureFixture[str]) -> None:
    console = make("plain")
    for problem in (None, "the rubric differs", "the rubric differs", None):
        console.update({"env_steps": 1, "problem": problem})
    output = capsys.readouterr().out
    assert output.count("the rubric differs") == 1
    assert output.count("the judge is back") == 1


def test_a_disk_that_refuses_is_said_once_and_its_end_too_and_a_notice_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = make("plain")
    a, b = "checkpoint a could not be written", "checkpoint b could not be written"
    for problem in (None, a, a, b, b, None, None):
        console.update({"env_steps": 1, "storage_problem": problem, "notice": "an older checkpoint is used"})
    console.update({"env_steps": 1, "storage_problem": None, "notice": None})  # of a learner that was started again
    output = capsys.readouterr().out
    assert "None" not in output
    assert output.count(f"training goes on, but: {a}") == output.count(f"training goes on, but: {b}") == 1
    assert output.count("the disk takes what is written again") == 1
    assert output.count("an older checkpoint is used") == 1


def test_the_time_left_is_that_of_what_ends_the_run_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("cluster.run.console.time", SimpleNamespace(monotonic=lambda: now[0]))
    console = Console(
        LoggingConfig(console="plain", console_interval_s=0.1), total_env_steps=1000, mode="local", max_time_s=600
    )
    lines = [(0, 0, 5.0), (100, 10, 15.0), (990, 20, 25.0), (990, 580, 595.0)]
    for steps, at_s, trained_s in lines:
        now[0] = float(at_s)
        console.update({"env_steps": steps, "time_s": trained_s})
    console.summarise({**SUMMARY, "ended_by": "max_time_s"}, "runs/x")
    output = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[2] for line in output[:3]] == ["0:01:30 left", "0:00:00 left", "0:00:05 left"]
    assert "runs/x: finished, its time is up (max_time_s = 600 s), at 1,000 environment steps, 3 episodes" in output


def test_without_a_step_the_time_left_is_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    for limit_s, left in ((0.0, "? left"), (600.0, "0:09:20 left")):
        console = Console(
            LoggingConfig(console="plain", console_interval_s=0.0),
            total_env_steps=1000,
            mode="local",
            max_time_s=limit_s,
        )
        console.update({"env_steps": 0, "time_s": 40.0})
        assert left in capsys.readouterr().out


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    console = make("quiet")
    console.update({"env_steps": 1, "problem": "x"})
    console.summarise(SUMMARY, "runs/x")
    assert capsys.readouterr().out == ""


def test_no_time_is_left_where_the_last_batch_went_beyond_the_goal(capsys: pytest.CaptureFixture[str]) -> None:
    console = make("plain")
    console.update({"env_steps": 1})
    console.update({"env_steps": 10**9})
    assert "0:00:00 left" in capsys.readouterr().out


def test_the_bottleneck_is_named_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    shares = {"worker_env_fraction": 0.5, "worker_inference_fraction": 0.3, "worker_idle_fraction": 0.15}
    console = make("plain")
    console.update({"env_steps": 1, **shares, "learner_wait_fraction": 0.02, "learner_train_fraction": 0.92})
    assert "learner-bound: it trains 92% of the time, workers idle 15%" in capsys.readouterr().out
