"""The Reward Report of real runs says what was optimised, judged and paid, whatever state the run is in; its Markdown
is what the facts say, and nothing that a text makes of it."""

import itertools
import json
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from cluster.report import reward_files
from cluster.report.captions import read_captions
from cluster.report.command import main as report_page
from cluster.report.reading import read_run
from cluster.report.reward_command import main
from cluster.report.reward_files import MARKDOWN, RewardReportWriter, markdown
from cluster.report.words import visible
from learner.update import Learner, StepResult
from llm_server.annotation import signed_id
from llm_server.rubrics.loading import load_rubric
from tests.cluster.report.small_run import HOSTILE, data_of, trained

TEXTS = (
    *HOSTILE,
    "a | b || c",
    "| --- | --- |",
    "`code` and ```fence```",
    "<b>bold</b> &amp; &lt;",
    "[link](http://evil.example) ![image](http://evil.example/x.png)",
    "see http://evil.example or www.evil.example",
    "*em* __strong__ ~~gone~~ $x^2$ @someone #1",
    "back\\slash \\| \\` \\<i>",
    "a line\u2028separator",
    "# heading",
)


class Paid:
    """Counts what the learner trains on, step by step, beside the run's own sums."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_id: Counter[int] = Counter()
        step = Learner.step

        def counted(learner: Learner, rollouts: Any, *arguments: Any) -> StepResult:
            result = step(learner, rollouts, *arguments)
            for rollout, intrinsic in zip(rollouts, result.intrinsic, strict=True):
                ids = rollout.caption_ids[:, rollout.kept]
                for number, reward in zip(ids.ravel().tolist(), intrinsic.ravel().tolist(), strict=True):
                    self.by_id[number] += abs(reward)
            return result

        monkeypatch.setattr(Learner, "step", counted)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counter[int]]:
    """A run of two starts, and what it paid."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        paid = Paid(patch)
        trained(run_dir, steps=8 * 16 * 12)
        trained(run_dir, steps=8 * 16 * 24)
    return run_dir, paid.by_id


@pytest.fixture
def run_dir(finished: tuple[Path, Counter[int]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def report_of(run_dir: Path) -> tuple[str, Any]:
    """Both files."""
    return (run_dir / MARKDOWN).read_text(), json.loads((run_dir / "reward_report.json").read_text())


def test_a_finished_run_has_its_report_with_rubric_hash_and_threshold(run_dir: Path) -> None:
    text, facts = report_of(run_dir)
    rubric, judge = load_rubric("nethack_progress"), read_run(str(run_dir)).learnt.main.judge
    before, after = rubric.question().completion_prompt()
    assert f"{before} [the item]{after}" in text
    assert facts["terms"]["main"]["rubric"]["hash"] == rubric.content_hash == judge["rubric_hash"]
    assert rubric.content_hash in text
    assert judge["fingerprint"] in text
    assert f"{judge['threshold']:.4f}" in text
    assert facts["terms"]["main"]["judge"]["threshold"] == judge["threshold"]
    assert facts["env_steps"] == facts["total_env_steps"] == 8 * 16 * 24
    assert not list(run_dir.glob(".reward_report*")), "files are replaced whole"


def test_sums_are_those_that_the_learner_was_paid_step_by_step(
    finished: tuple[Path, Counter[int]], run_dir: Path
) -> None:
    term = report_of(run_dir)[1]["terms"]["main"]
    counted = {number: paid for number, paid in finished[1].items() if paid}
    shown = {int(item["id"], 16): item["paid"] for item in term["most_paid"]}
    assert shown == pytest.approx(counted)
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    assert term["paid_total"] == pytest.approx(sum(counted.values()))
    assert term["most_costly"] == []
    assert {item["text"] for item in term["most_paid"]} <= set(texts_of(run_dir))
    assert all(item["reward"] > 0 and item["probability"] > 0.5 for item in term["most_paid"])


def texts_of(run_dir: Path) -> list[str]:
    with closing(sqlite3.connect(run_dir / "captions.sqlite")) as archive:
        return [text for (text,) in archive.execute("SELECT text FROM captions")]


def test_both_starts_and_ten_parts_of_the_run_are_there(run_dir: Path) -> None:
    facts = report_of(run_dir)[1]
    assert [start["from_steps"] for start in facts["starts"]] == [0, 8 * 16 * 12]
    assert all(start["rubric_hash"] and start["started"] for start in facts["starts"])
    assert len(facts["parts"]) == 10
    assert facts["parts"][-1]["to_steps"] == 8 * 16 * 24
    assert any(part["intrinsic"] for part in facts["parts"])


def test_the_command_writes_anew_what_it_finds(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = report_of(run_dir)
    for name in (MARKDOWN, "reward_report.json"):
        (run_dir / name).unlink()
    assert main([str(run_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir / MARKDOWN)
    assert report_of(run_dir) == before
    (run_dir / "audit.json").write_text('{"title": "200 captions", "auc": 0.875, "auc_low": NaN}')
    assert main([str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"]["audit"]["auc"] == 0.875
    assert "Audit: 200 captions." in report_of(run_dir)[0]


def test_out_leaves_the_run_directory_as_it_is(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / MARKDOWN).unlink()
    assert main([str(run_dir), "--out", str(tmp_path / "other.md")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "other.md", "run"]
    assert not (run_dir / MARKDOWN).exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["{empty}"], "no run at {empty} (it has no config.json)"),
        (["{run}", "--out", "{run}/captions.sqlite"], "wanted a name that ends in .md"),
        (["{run}", "--out", "{run}/absent/report.md"], "No such file or directory"),
    ],
)
def test_an_invalid_command_is_one_line_and_exit_code_2(
    arguments: list[str], wanted: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, places = report_of(run_dir), {"empty": str(tmp_path / "empty"), "run": str(run_dir)}
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("delphi reward-report: ")
    assert wanted.format(**places) in error
    assert error.count("\n") == 1
    assert report_of(run_dir) == before


@pytest.mark.parametrize("name", ["none", "counts"])
def test_a_run_without_a_judge_says_so(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", f"reward_model.name={name}", steps=8 * 16 * 4)
    text, facts = report_of(run)
    assert "asks no judge" in text
    assert facts["terms"]["main"]["judge"] is None
    assert "text" not in facts["terms"]["main"]["rubric"]
    assert bool(facts["terms"]["main"]["most_paid"]) == (name == "counts")


def test_a_run_stopped_before_its_first_checkpoint_has_a_report_of_what_there_is(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "summary.json").unlink()
    assert main([str(run_dir)]) == 0
    text, facts = report_of(run_dir)
    assert "there is no complete checkpoint yet" in text
    assert facts["terms"]["main"]["most_paid"] == []
    assert facts["terms"]["main"]["rubric"]["text"]
    assert facts["parts"]
    for path in run_dir.iterdir():
        if path.is_file() and path.name != "config.json":
            path.unlink()
    assert main([str(run_dir)]) == 0
    assert "Nothing was measured yet" in report_of(run_dir)[0]


def test_a_run_with_a_term_that_costs_shows_what_each_term_paid(tmp_path: Path) -> None:
    half = ("terms.fight.rubric=nethack_combat", "terms.fight.coefficient=-0.2", "reward.intrinsic_coefficient=0.4")
    run = trained(tmp_path / "run", *half)
    text, facts = report_of(run)
    main_term, fight = facts["terms"]["main"], facts["terms"]["fight"]
    assert (fight["most_paid"], main_term["most_costly"]) == ([], [])
    costs = {item["text"]: item["paid"] for item in fight["most_costly"]}
    assert costs == pytest.approx({item["text"]: -item["paid"] / 2 for item in main_term["most_paid"]})
    assert fight["rubric"]["hash"] == load_rubric("nethack_combat").content_hash != main_term["rubric"]["hash"]
    shares = [part["terms"] for part in facts["parts"]]
    assert any(part["fight"]["share"] == pytest.approx(1 / 3) for part in shares)
    assert "fight: items that cost most" in text
    assert report_page([str(run), "--no-replays"]) == 0
    data = data_of(run / "report.html")["runs"][0]
    assert [term["name"] for term in data["terms"]] == ["main", "fight"]
    assert data["terms"][1]["prompt"]["id"] == "nethack_combat"
    assert {series["name"] for series in data["charts"]["terms"][0]["series"]} == {"main", "fight"}
    captions = read_captions(read_run(str(run)))
    assert np.bincount(captions.columns["term"]).tolist() == [len(captions.ids) // 2] * 2


def test_training_writes_the_report_at_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.launch.write_at_end", lambda run_dir: None)
    run = trained(tmp_path / "run", steps=8 * 16 * 12)
    facts = report_of(run)[1]
    assert 1024 <= facts["env_steps"] < 8 * 16 * 12
    assert facts["terms"]["main"]["judge"]["rubric_hash"]
    assert facts["terms"]["main"]["most_paid"]


def test_a_report_that_takes_long_is_not_written_at_every_checkpoint(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [1000.0], []

    def write(*arguments: Any) -> None:
        written.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(reward_files, "write_reward_report", write)
    monkeypatch.setattr(reward_files.time, "monotonic", lambda: now[0])
    writer, state = RewardReportWriter(run_dir), {"annotation": {}, "learner": {"rewards": {"paid": {}}}}
    for now[0] in (1000.0, 1100.0, 1199.0, 1200.0, 1300.0):
        writer.note(1, state)
    assert written == [1000.0, 1200.0], "2 s are 1 % of 200 s"


def test_a_report_that_fails_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reward_files, "write_reward_report", fail)
    run = trained(tmp_path / "run", steps=8 * 16 * 12)
    assert json.loads((run / "summary.json").read_text())["finished"]
    assert "reward_report.md could not be written" in caplog.text


def test_the_report_changes_nothing_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("reward_model.name=classification", "reward_model.steps_per_turn=1")
    trained(tmp_path / "with", *options, steps=8 * 16 * 12)
    monkeypatch.setattr(RewardReportWriter, "note", lambda *arguments: None)
    trained(tmp_path / "without", *options, steps=8 * 16 * 12)
    one, other = (sorted((tmp_path / name / "checkpoints").glob("*/*.safetensors")) for name in ("with", "without"))
    assert one
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def cells(text: str) -> list[str]:
    """The texts of all table cells of a Markdown document; AssertionError where a cell holds anything but text."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    found = []
    for before, token in itertools.pairwise(tokens):
        assert token.type != "html_block"
        if before.type == "td_open":
            assert {child.type for child in token.children or ()} <= {"text"}, token.content
            found.append("".join(child.content for child in token.children or ()))
    return found


@pytest.mark.parametrize("hostile", TEXTS)
def test_a_hostile_caption_is_shown_as_it_is(hostile: str, run_dir: Path) -> None:
    top = report_of(run_dir)[1]["terms"]["main"]["most_paid"][0]
    with closing(sqlite3.connect(run_dir / "captions.sqlite")) as archive, archive:
        archive.execute("UPDATE captions SET text = ? WHERE id = ?", (hostile, signed_id(int(top["id"], 16))))
    num_cells = len(cells((run_dir / MARKDOWN).read_text()))
    assert main([str(run_dir)]) == 0
    text, facts = report_of(run_dir)
    assert facts["terms"]["main"]["most_paid"][0]["text"] == hostile
    assert visible(hostile) in cells(text)
    assert len(cells(text)) == num_cells
    assert "://evil" not in text
    assert "www.evil" not in text


def test_a_rubric_with_fences_stays_in_its_own(run_dir: Path) -> None:
    facts = report_of(run_dir)[1]
    facts["terms"]["main"]["rubric"]["text"] = "```\n<script>\n````\n# no heading"
    tokens = MarkdownIt("commonmark").parse(markdown(facts))
    assert any(token.type == "fence" and token.content == "```\n<script>\n````\n# no heading\n" for token in tokens)
