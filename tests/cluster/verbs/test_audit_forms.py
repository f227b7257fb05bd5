"""`delphi audit` and `delphi annotate` of rubrics that judge about a second text, and of graded ones."""

import json

import numpy as np
import pytest

from cluster.verbs import audit
from llm_server.offline import annotate
from llm_server.offline.audit_metrics import rank_correlation
from llm_server.offline.judgement_file import read_judgements
from tests.refusals import assert_refused

RUBRIC = """
id: tiny
version: 1
goal: The goal is reached.
style: completion
instructions: Judge.
threshold: 0.5
"""
ABOUT = RUBRIC + (
    "about_label: 'Goal:'\npositive: ' yes'\nnegative: ' no'\n"
    "examples: [{about: open the door, item: The door opens., positive: true}]\n"
)
GRADED = RUBRIC + "answers: [{word: ' none', value: 0}, {word: ' some', value: 0.5}, {word: ' much', value: 1}]\n"
PLAIN = RUBRIC + "positive: ' yes'\nnegative: ' no'\n"
SCRIPT = r"door\n.*door opens=0.9;gold\n.*gold=0.8;much=0.9;some=0.6"


@pytest.fixture
def lines(tmp_path):
    def lines(*rows):
        path = tmp_path / "lines.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return lines


@pytest.fixture
def judged_by(tmp_path):
    """The flags of a scripted judge with a rubric."""

    def judged_by(rubric):
        (tmp_path / "rubric.yaml").write_text(rubric)
        return ["--rubric", str(tmp_path / "rubric.yaml"), "--engine", "scripted", "--script", SCRIPT]

    return judged_by


TEXTS = ["The door opens.", "The red door opens.", "12 gold pieces."]
ABOUT_ROWS = [
    {"about": about, "caption": text, "helpful": int(about.split()[-1] in text)}
    for about in ("open the door", "find gold")
    for text in TEXTS
]
GRADED_ROWS = [{"caption": f"{word} {n}", "value": value} for n in range(4) for word, value in
               (("nothing", 0), ("some", 0.5), ("much", 1))]  # fmt: skip


def test_each_caption_is_judged_about_its_own_text(judged_by, lines, capsys):
    assert audit.main([*judged_by(ABOUT), "--json", "--speed-captions", "20", lines(*ABOUT_ROWS)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["auc"], report["captions"], report["positives"], report["labels_timed"]) == (1.0, 5, 2, 20)
    assert report["examples_left_out"] == 1, "the same caption about something else is no example"


def test_graded_labels_give_a_rank_correlation_with_its_interval(judged_by, lines, capsys):
    rows = [*GRADED_ROWS, {"caption": "much ado about nothing", "value": 0}]
    assert audit.main([*judged_by(GRADED), "--json", lines(*rows)]) == 0
    report = json.loads(capsys.readouterr().out)
    answers = np.array([{"n": 0.1, "s": 0.6, "m": 0.9}[row["caption"][0]] for row in rows])
    assert report["spearman"] == pytest.approx(rank_correlation(answers, np.array([row["value"] for row in rows])))
    assert report["spearman_low"] < report["spearman"] < 1.0
    assert "auc" not in report
    assert audit.main([*judged_by(GRADED), lines(*rows)]) == 0
    table = capsys.readouterr().out
    assert "rank correlation" in table
    assert "Spearman, 95 % interval" in table


def test_one_rubric_per_goal_is_audited_on_the_lines_about_its_goal(judged_by, lines, capsys):
    judge = [*judged_by(PLAIN), "--script", "door opens=0.9", "--json", "--speed-captions", "0"]
    assert audit.main([*judge, "--about", "open the door", lines(*ABOUT_ROWS)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["auc"], report["captions"], report["positives"], report["accuracy"]) == (1.0, 3, 2, 1.0)
    assert report["accuracy_low"] == pytest.approx(1 / (1 + 1.959964**2 / 3)), "Wilson's, of 3 in 3"
    assert report["accuracy_high"] == pytest.approx(1.0)


def test_a_rubric_about_something_is_audited_on_the_lines_about_it(judged_by, lines, capsys):
    command = [*judged_by(ABOUT), "--json", "--speed-captions", "0", "--about", "find gold", lines(*ABOUT_ROWS)]
    assert audit.main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["captions"], report["positives"], report["auc"]) == (3, 1, 1.0)


def test_an_accomplishment_counts_only_for_the_goal_that_it_resembles(judged_by, lines, capsys):
    accomplishments = [*judged_by(PLAIN), "--script", "opens=0.9;gold=0.9", "--json", "--speed-captions", "0"]
    assert audit.main([*accomplishments, "--similarity", "0.4", lines(*ABOUT_ROWS)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["captions"], report["accuracy"], report["auc"]) == (6, 1.0, 1.0)
    assert audit.main([*accomplishments, "--similarity", "-1", lines(*ABOUT_ROWS)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["accuracy"], report["auc"]) == (0.5, 0.5), "each is an accomplishment"


@pytest.mark.parametrize(
    ("rubric", "rows", "flags", "complaint"),
    [
        (PLAIN, ABOUT_ROWS, ["--about", "open it"], "wanted one of the file's lines: 'find gold', 'open the"),
        (PLAIN, GRADED_ROWS, ["--similarity", "0.4"], "got captions without `about`, wanted a rubric without"),
        (ABOUT, ABOUT_ROWS, ["--similarity", "0.4"], "got rubric 'tiny' judges about something itself"),
        (PLAIN, ABOUT_ROWS, ["--similarity", "4"], "--similarity: got 4.0, wanted a cosine, -1 to 1"),
        (ABOUT, [{"caption": row["caption"], "helpful": row["helpful"]} for row in ABOUT_ROWS[1:3]], [], "an `about`"),
        (PLAIN, ABOUT_ROWS, [], "'tiny' has no about_label, it judges items alone: leave `about` out"),
        (GRADED, GRADED_ROWS, ["--min-auc", "0.9"], "--min-auc: got it with graded labels"),
        (GRADED, GRADED_ROWS, ["--pairs", "3"], "--pairs: got it with graded labels"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(judged_by, lines, capsys, rubric, rows, flags, complaint):
    assert_refused(audit.main([*judged_by(rubric), *flags, lines(*rows)]), capsys.readouterr().err, complaint)


def test_captions_are_annotated_about_one_text_and_the_file_keeps_it(judged_by, lines, tmp_path, capsys):
    out, captions = tmp_path / "out.sqlite", lines(*({"caption": text} for text in TEXTS))
    command = [*judged_by(ABOUT), "--store", "memory", "--out", str(out), captions]
    assert_refused(annotate.main(command), capsys.readouterr().err, "judges every item about something")
    assert annotate.main([*command, "--about", "open the door"]) == 0
    found = read_judgements(out)
    assert {judged.caption.text: judged.judgement.probability for judged in found.captions} == dict(
        zip(TEXTS, (0.9, 0.9, 0.1), strict=True)
    )
    assert found.provenance.about == "open the door"
    capsys.readouterr()
    complaint = "holds answers about 'open the door', requested is 'find gold': give another --out"
    assert_refused(annotate.main([*command, "--about", "find gold"]), capsys.readouterr().err, complaint)


def test_a_runs_reward_model_is_not_audited_with_such_labels(lines, tmp_path, capsys):
    for rows in (ABOUT_ROWS, GRADED_ROWS):
        code = audit.main(["--run", str(tmp_path), lines(*rows)])
        assert_refused(code, capsys.readouterr().err, "wanted lines of caption and helpful alone")
