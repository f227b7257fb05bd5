"""`delphi goals`, the report's goal book and `delphi audit --goals`, on a trained run and labelled captions."""

import json
from pathlib import Path

import pytest

from cluster.goals.command import main
from cluster.report.reward_command import main as reward_report
from cluster.report.reward_files import MARKDOWN
from cluster.verbs.audit import main as audit
from tests.cluster.report.small_run import trained
from tests.refusals import assert_refused

GOALS = ("find the treasure", "<b>eat | the `dog` [red] :dog:</b>")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ", ".join(json.dumps(text) for text in GOALS)
    return trained(tmp_path_factory.mktemp("goals") / "run", "goals.sources=[config]", f"goals.texts=[{texts}]")


def test_every_goal_is_listed_with_what_it_paid(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--json"]) == 0
    goals = json.loads(capsys.readouterr().out)
    assert [goal["text"] for goal in goals] == [*GOALS]
    assert {goal["source"] for goal in goals} == {"config"}
    found, eaten = goals
    assert found["tries"] >= found["achieved"] >= found["in_successes"] + found["in_failures"] > 0
    assert found["paid"] > 0
    assert (eaten["achieved"], eaten["success"], eaten["paid"]) == (0, 0.0, 0.0)


def test_the_table_can_be_sorted_and_shows_texts_as_they_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--sort", "paid"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(part in line for line in lines) for part in ("[red]", ":dog:"))
    first, second = (next(n for n, line in enumerate(lines) if text.split()[0] in line) for text in GOALS)
    assert first < second


def test_the_reward_report_has_the_goal_book(run: Path) -> None:
    assert reward_report([str(run)]) == 0
    report = (run / MARKDOWN).read_text()
    section = report[report.index("## Goals") :]
    assert "find the treasure" in section
    assert "<b>" not in section


def test_a_run_without_goals_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = trained(tmp_path / "run", steps=128)
    capsys.readouterr()
    assert_refused(main([str(plain)]), capsys.readouterr().err, "is a run without goals")


LABELLED = [
    {"caption": "You open the oak gate.", "goal": "open the gate"},
    {"caption": "The gate creaks and opens.", "goal": "open the gate"},
    {"caption": "This gate is barred.", "goal": None},
    {"caption": "You eat the ripe pear.", "goal": "eat a pear"},
    {"caption": "It is made of brick.", "goal": None},
]
JUDGE = ["--engine", "scripted", "--script", "open|eat=0.9"]


def test_the_matching_of_goals_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The judge knows accomplishments here, so `both` names every goal and pays no locked door, which its likeness to
    the goal alone would."""
    file = tmp_path / "goals.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in LABELLED))
    assert audit(["--goals", str(file), "--json", *JUDGE]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["captions"], report["goals"]) == (5, 2)
    assert report["rules"]["both"] == {"precision": 1.0, "recall": 1.0, "right_goal": 1.0}
    assert report["rules"]["similarity"]["precision"] == 0.75  # the barred gate
    assert audit(["--goals", str(file), *JUDGE, "--similarity", "1"]) == 0
    assert "right goal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"caption": "You win.", "goal": 3}, "goal is 3, wanted text, or null"),
        ({"caption": "You win."}, "has no 'goal'"),
        ({"caption": "You win.", "goal": "x" * 101}, "is no goal, wanted one printable line of at most 100"),
        ({"caption": "You win.", "goal": None}, "got 0 different goals, wanted 1 to 256"),
    ],
)
def test_files_of_goals_that_cannot_be_used_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: dict[str, object], message: str
) -> None:
    file = tmp_path / "goals.jsonl"
    file.write_text(json.dumps(line) + "\n")
    assert_refused(audit(["--goals", str(file), *JUDGE]), capsys.readouterr().err, message)


def test_what_does_not_go_with_goals_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = audit(["--goals", "--min-auc", "0.5", str(tmp_path / "x")])
    assert_refused(code, capsys.readouterr().err, "--min-auc something else")
