"""What is read of a run: whole, partial or damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cluster.report.captions import read_captions
from cluster.report.command import main
from cluster.report.reading import read_run
from learner.checkpoint_format import load_checkpoint
from reward_models.distance import table_distance
from reward_models.training import saved_table
from tests.cluster.report.small_run import trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_what_was_paid_is_written_beside_every_metric_line_and_ends_at_the_checkpoints_sums(run_dir: Path) -> None:
    run = read_run(str(run_dir))
    assert run.missing == []
    assert run.learnt.env_steps == run.env_steps == run.paid[-1].env_steps
    paid = {line.env_steps for line in run.paid}
    assert paid <= {line["env_steps"] for line in run.lines}
    assert len(paid) > 5
    assert run.paid[-1].total == pytest.approx(run.learnt.paid_lines[-1].total)
    assert dict(run.paid[-1].captions) == pytest.approx(dict(run.learnt.paid_lines[-1].captions))


def test_lines_beyond_the_checkpoint_of_a_resume_and_torn_ones_are_left_out(run_dir: Path) -> None:
    before = read_run(str(run_dir))
    with (run_dir / "paid.jsonl").open("a") as file:
        file.write('{"env_steps": 999999, "total": 5.0, "captions": [[1, 5.0]]}\n')
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"env_steps": 99')
    run = read_run(str(run_dir))
    assert run.paid == before.paid
    assert run.lines == before.lines
    assert run.missing == ["metrics.jsonl: 2 damaged or unfinished lines are left out"]


def test_without_the_log_payments_come_from_the_checkpoints(run_dir: Path) -> None:
    (run_dir / "paid.jsonl").unlink()
    assert [line.env_steps for line in read_run(str(run_dir)).paid] == [
        int(path.name.removeprefix("step_")) for path in sorted(run_dir.glob("checkpoints/step_*"), key=step_of)
    ]


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def test_a_run_that_has_only_its_configuration_is_read_and_says_what_is_missing(run_dir: Path) -> None:
    for path in run_dir.iterdir():
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = read_run(str(run_dir))
    assert (run.lines, run.summary, run.paid, run.env_steps) == ([], {}, [], 0)
    told = " ".join(run.missing)
    for word in ("summary.json", "provenance.json", "metrics.jsonl", "checkpoint"):
        assert word in told


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_read(run_dir: Path) -> None:
    *_, before, newest = sorted(run_dir.glob("checkpoints/step_*"), key=step_of)
    (newest / "learner.safetensors").write_bytes(b"")
    run = read_run(str(run_dir))
    assert run.learnt.env_steps == step_of(before)
    assert newest.name in run.missing[0]


def test_a_summary_of_an_earlier_end_is_not_taken_for_this_one(run_dir: Path) -> None:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    later = json.loads(lines[-1]) | {"env_steps": 10**9}
    (run_dir / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(later)]) + "\n")
    assert read_run(str(run_dir)).summary == {}


def test_captions_have_their_reward_and_payment_and_the_most_paid_come_first(run_dir: Path) -> None:
    run = read_run(str(run_dir))
    captions = read_captions(run)
    paid = captions.columns["paid"]
    assert (np.diff(paid) <= 0).all()
    assert paid[0] > 0
    assert dict(zip(captions.ids.tolist(), paid.tolist(), strict=True))[max(run.paid[-1].captions)] == pytest.approx(
        run.paid[-1].captions[max(run.paid[-1].captions)], rel=1e-6
    )
    by_text = dict(zip(captions.texts, captions.columns["reward"].tolist(), strict=True))
    assert by_text["You reach the treasure!"] == 1.0
    assert by_text["You bump into a wall."] == 0.0


def test_the_drift_of_the_report_is_the_distance_of_the_tables_of_two_checkpoints(run_dir: Path) -> None:
    former, newest = (load_checkpoint(path) for path in sorted(run_dir.glob("checkpoints/step_*"), key=step_of)[-2:])
    book = newest["annotation"]["book"]["columns"]
    tables = [saved_table(state["annotation"]["trainer"], 0) for state in (former, newest)]
    assert read_run(str(run_dir)).learnt.main.drifts[-1].distance == table_distance(*tables, book["id"], book["count"])


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["{empty}"], "no run at {empty} (it has no config.json)"),
        (["{run}", "--episodes", "0"], "--episodes: got 0, wanted at least 1"),
        (["{run}", "--out", "{run}/captions.sqlite"], "wanted a name that ends in .html"),
        (["{run}", "--no-replays", "--out", "{run}/absent/report.html"], "No such file or directory"),
    ],
)
def test_an_invalid_command_is_one_line_and_exit_code_2(
    arguments: list[str], wanted: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"empty": str(tmp_path / "empty"), "run": str(run_dir)}
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("delphi report: ")
    assert wanted.format(**places) in error
    assert error.count("\n") == 1
