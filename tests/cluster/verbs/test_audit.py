"""`delphi audit` from the command line: its metrics, keys and exit codes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.captions import caption_id
from cluster.run.directory import open_run
from cluster.verbs.audit import main
from configs.loading import load_config
from learner.checkpoint import save_checkpoint
from learner.reward.paid import PaidRewards
from llm_server.annotation import Caption, JudgedCaption, Judgement, Status
from llm_server.annotator.caption_archive import CaptionArchive
from llm_server.engines.sentence_encoder import SentenceEncoder
from llm_server.offline.audit import sample_labelled_pairs, shuffled_words, without_examples
from llm_server.offline.audit_metrics import auc
from llm_server.offline.caption_file import LabelledCaption
from reward_models.building import build_reward_model
from tests.refusals import assert_refused

RUBRIC = """
id: tiny
version: 1
goal: The player wins something.
style: completion
instructions: Did the player win?
positive: " yes"
negative: " no"
examples:
  - {positive: true, item: "You  KILL the example!"}
threshold: 0.5
"""
PAIRS = """
pairs:
  instructions: Which is better?
  first: " first"
  second: " second"
  examples:
    - {first: "You kill number 1!", second: "A wall number 1.", better: first}
"""
KEYS = {"auc", "auc_low", "auc_high", "accuracy", "balanced_accuracy", "calibration_error", "labels_per_s", "unparsed"}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.jsonl"
    rows = [{"caption": f"You kill number {n}!", "helpful": 1} for n in range(10)]
    rows += [{"caption": f"A wall number {n}.", "helpful": 0} for n in range(10)]
    rows += [{"caption": "you kill the example!", "helpful": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def audit(tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]):
    def audit(
        *flags: str,
        script: str = "kill number [0-7]=0.9;wall number 3=0.9;kill=0.2;wall=0.1",
        pairs: bool | str = False,
    ):
        (tmp_path / "rubric.yaml").write_text(
            RUBRIC + (PAIRS if pairs else "") + (pairs if isinstance(pairs, str) else "")
        )
        own = ["--rubric", str(tmp_path / "rubric.yaml"), "--engine", "scripted", "--script", script]
        code = main([*own, *flags, str(labelled)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return audit


def test_the_metrics_are_those_of_the_answers(audit):
    code, out, _ = audit("--json")
    report = json.loads(out)
    assert code == 0
    assert report.keys() >= KEYS
    assert report["captions"] == 20, "the example is left out, whatever its case and spacing"
    assert report["examples_left_out"] == 1
    # 8 of 10 positives and 1 of 10 negatives at 0.9, positives else 0.2, negatives else 0.1.
    assert report["auc"] == pytest.approx((8 * (9 + 0.5) + 2 * 9) / 100)
    assert report["auc_low"] < report["auc"] < report["auc_high"]
    assert (report["accuracy"], report["balanced_accuracy"]) == pytest.approx((0.85, 0.85))
    assert report["calibration_error"] == pytest.approx((abs(9 * 0.9 - 8) + abs(2 * 0.2 - 2) + abs(9 * 0.1 - 0)) / 20)
    assert report["unparsed"] == 0
    assert report["labels_per_s"] > 0
    assert report["labels_timed"] == 512, "others are made of the file's words"
    assert "pairs" not in report
    assert json.loads(audit("--json")[1])["auc_low"] == report["auc_low"], "the bootstrap is seeded"


def test_pairs_are_compared_where_the_rubric_compares_them(audit):
    report = json.loads(audit("--json", "--pairs", "50", pairs=True)[1])
    assert report["pairs"] == 50
    assert 0.7 < report["pair_accuracy"] < 1.0
    assert report["pair_position_bias"] == pytest.approx(0.0)
    assert report["captions"] == 20, "examples of pairs are left out of pairs only"
    assert "pairs" not in json.loads(audit("--json", "--pairs", "0", pairs=True)[1])


def test_examples_of_pairs_that_leave_one_class_cost_the_pairs_only(audit, tmp_path):
    shown = [f'    - {{first: "You kill number {n}!", second: "A wall number 0.", better: first}}\n' for n in range(10)]
    code, out, _ = audit("--json", pairs="".join(shown))
    report = json.loads(out)
    assert (code, report["pairs"], report["pair_accuracy"]) == (0, 0, None)
    assert "those are all of one kind" in report["pairs_remark"]
    assert report["auc"] == json.loads(audit("--json")[1])["auc"]
    assert "none asked: of 20" in " ".join(audit(pairs="".join(shown))[1].split())


def test_the_table_says_what_counts(audit):
    code, out, _ = audit(pairs=True)
    assert code == 0
    for words in (
        "AUC",
        "95 % interval",
        "balanced accuracy",
        "1 left out",
        "loading",
        "pairs: accuracy",
        "theta = 0.500",
    ):
        assert words in " ".join(out.split()), words


def test_an_auc_below_the_wanted_one_is_exit_code_1(audit):
    assert audit("--min-auc", "0.9")[0] == 0
    code, out, err = audit("--min-auc", "0.99")
    *progress, line = err.strip().splitlines()
    assert code == 1
    assert all(": " in told and told.endswith(", done") for told in progress)
    assert "AUC is 0.940, --min-auc 0.99" in line
    assert "AUC" in out, "the table is printed all the same"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--pairs", "3"], "has no `pairs` section"),
        (["--pairs", "-3"], "--pairs: got -3"),
        (["--min-auc", "2"], "--min-auc: got 2"),
        (["--batch-size", "0"], "--batch-size: got 0"),
        (["--address", "127.0.0.1:1"], "leave one of the two out"),
        (["--engine", "none"], "judges nothing"),
        (["--run", "somewhere"], "--run audits a run's reward model, --engine a judge"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(audit, flags, complaint):
    code, out, err = audit(*flags)
    assert_refused(code, err, complaint)
    assert not out


def test_a_service_that_is_not_there_is_one_line(labelled, capsys):
    assert main(["--address", "127.0.0.1:1", str(labelled)]) == 2
    assert "annotation service at 127.0.0.1:1" in capsys.readouterr().err


@pytest.fixture
def save(tmp_path: Path):
    """Writes a run directory as training leaves it, with a reward model that has been taught."""

    def save(teach, *overrides: str) -> Path:
        config = load_config(
            preset="debug", overrides=["env.fold_case=true", f"run_dir={tmp_path / 'run'}", *overrides]
        )
        directory, _ = open_run(config)
        directory.release()
        model = build_reward_model(config.reward_model)
        teach(model)
        paid = PaidRewards()
        texts = {
            "you kill number 1!": 3.0,
            "you kill number 2!  it's a door.": 2.0,
            "a wall number 3.": 1.0,
            "who knows?": 4.0,
        }
        paid.note(np.array([caption_id(text) for text in texts], np.uint64), np.array(list(texts.values()), np.float32))
        state = {
            "loop": {"env_steps": 1234},
            "annotation": {"trainer": {"model": model.state_dict()}},
            "learner": {"rewards": {"paid": paid.state_dict()}},
        }
        archive = CaptionArchive(directory.captions)
        archive.write((caption_id(text), text, 1, 0, 0, 0.9, 1.0, "OK") for text in texts)
        archive.close()
        save_checkpoint(directory.checkpoints, 1234, state, keep=1)
        return directory.path

    return save


def teach_answers(model) -> None:
    """The judge's answers about all labelled captions but the last positive and the last negative one."""
    model.calibrate(0.5)
    answers = {f"you kill number {n}!": 0.9 if n < 7 else 0.2 for n in range(9)} | {
        f"a wall number {n}.": 0.1 for n in range(9)
    }
    ok = {text: Judgement(status=Status.OK, probability=p, answer_mass=1.0) for text, p in answers.items()}
    model.learn(
        [JudgedCaption(caption=Caption(id=caption_id(text), text=text), judgement=said) for text, said in ok.items()]
    )


@pytest.fixture
def run(save) -> Path:
    return save(teach_answers)


def test_a_runs_reward_model_is_audited_like_a_judge(run, labelled, capsys):
    assert main(["--json", "--run", str(run), str(labelled)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.keys() >= KEYS
    assert (report["reward_model"], report["env_steps"], report["captions"]) == ("retrieval", 1234, 21)
    assert report["unparsed"] == 3, "two that it never met, and the rubric's example"
    assert report["balanced_accuracy"] == pytest.approx((7 / 9 + 1) / 2)
    assert report["auc"] == 1.0, "of what the model thinks, not of the reward it makes of that"
    assert main(["--run", str(run), "--min-auc", "0.95", str(labelled)]) == 0
    assert "retrieval of" in capsys.readouterr().out


def test_a_runs_reward_is_divided_by_what_people_call_progress(run, labelled, tmp_path, capsys):
    own = tmp_path / "own.jsonl"
    rows = [("You kill number 1!", 1), ("You kill number 2!", 1), ("A wall number 3.", 0)]  # the run folds case
    own.write_text("".join(json.dumps({"caption": text, "helpful": label}) + "\n" for text, label in rows))
    assert main(["--json", "--run", str(run), str(own)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["reward_precision"] == pytest.approx((3 + 2) / 6), (
        "a caption is progress where one of its messages is"
    )
    assert report["reward_labelled_fraction"] == pytest.approx(6 / 10)
    assert report["reward_unlabelled"] == [{"caption": "who knows?", "share": pytest.approx(0.4)}]
    assert main(["--run", str(run), str(own)]) == 0
    assert "60% of it is labelled" in capsys.readouterr().out


@pytest.fixture
def one_thread():
    """Small tensors on several threads of a busy machine take forever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_model_that_generalises_is_asked_about_captions_it_never_met(save, labelled, capsys, one_thread):
    taught = []

    def teach(model) -> None:
        teach_answers(model)
        model.train()
        taught.append(model)

    few = ("reward_model.steps_per_turn=25", "reward_model.batch_size=2")  # up to the first evaluation
    path = save(teach, "reward_model.name=classification", *few)
    assert main(["--json", "--run", str(path), str(labelled)]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    texts = [row["caption"].lower() for row in rows]
    margins = taught[0].margins([Caption(id=caption_id(text), text=text) for text in texts])
    assert np.isfinite(margins).all()
    assert report["auc"] == pytest.approx(auc(margins, np.array([row["helpful"] == 1 for row in rows])))
    assert report["unparsed"] == 0
    assert report["calibration_error"] is None, "margins are no probabilities"


def test_captions_are_embedded_for_a_model_that_asks_for_that(save, labelled, capsys, monkeypatch):
    def encode(self, texts):
        return np.array([[1.0, 0.0] if "kill" in text else [0.0, 1.0] for text in texts], np.float32)

    monkeypatch.setattr(SentenceEncoder, "encode", encode)
    path = save(lambda model: None, "reward_model.name=embedding", "reward_model.goals=[kill the monster]")
    assert main(["--json", "--run", str(path), str(labelled)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["reward_model"], report["captions"], report["unparsed"]) == ("embedding", 21, 0)
    assert report["auc"] == report["balanced_accuracy"] == 1.0
    assert report["examples_left_out"] == 0, "no rubric was asked"


def test_a_run_that_is_none_or_has_no_checkpoint_is_one_line(run, labelled, capsys, tmp_path):
    shutil.rmtree(run / "checkpoints")
    for path, complaint in ((run, "no complete checkpoint"), (tmp_path / "absent", "no run at")):
        assert_refused(main(["--run", str(path), str(labelled)]), capsys.readouterr().err, complaint)
    flags = ["--run", str(run), "--speed-captions", "9"]
    assert_refused(
        main([*flags, str(labelled)]),
        capsys.readouterr().err,
        "--run audits a run's reward model, --speed-captions a judge",
    )


def test_examples_alone_leave_nothing_to_audit():
    captions = [LabelledCaption(text="yes", is_positive=True), LabelledCaption(text="no", is_positive=False)]
    with pytest.raises(
        ValueError, match="of 2 labelled captions 1 are no examples of the rubric, and those are all of one kind"
    ):
        without_examples(captions, ["YES"])


def test_made_up_captions_are_distinct_and_as_long_as_the_files():
    texts = ["You kill the newt!", "A wall.", "No."]
    made = shuffled_words(texts, 30, seed=0)
    assert len(made) == len(set(made)) == 30
    assert not set(made) & set(texts)
    assert {len(text.split()) for text in made} == {1, 2, 4}
    assert {word for text in made for word in text.split()} == {word for text in texts for word in text.split()}
    assert set(shuffled_words(["a b"], 100, seed=0)) == {"b a", "a a", "b b"}, "too few words for more"


def test_sampled_pairs_are_distinct_and_of_both_kinds():
    captions = [LabelledCaption(text=str(n), is_positive=n < 3) for n in range(7)]
    pairs = sample_labelled_pairs(captions, 100, seed=0)
    assert len(pairs) == len(set(pairs)) == 12
    assert sample_labelled_pairs(captions, 5, seed=1) == sample_labelled_pairs(captions, 5, seed=1)
    assert all(int(first) < 3 <= int(second) for first, second in pairs)
