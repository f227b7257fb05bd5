"""A reward model that is trained on a judgement file before the policy: once, frozen, without a service."""

import json
import os
from pathlib import Path
from signal import SIGTERM

import numpy as np
import pytest

from cluster.launch import launch
from cluster.run.console import Console
from cluster.run.directory import find_run, open_run
from cluster.verbs import offline_reward_model as trained_model
from cluster.verbs.offline_reward_model import load_reward_model
from configs.checks import ConfigError
from configs.loading import load_config
from learner.checkpoint import load_latest
from llm_server.annotation import CaptionPair, JudgedCaption, JudgedPair, Judgement, PairJudgement, Status
from llm_server.offline.judgement_file import Judgements, Provenance, caption_of
from tests.judgement_files import write_judgements

TEXTS = [
    *(f"You advance to cell {n}." for n in range(1, 6)),
    *(f"You retreat to cell {n}." for n in range(5)),
    "You bump into a wall.",
]


def is_progress(text: str) -> bool:
    return "advance" in text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "judgements.sqlite"
    ok = {
        text: Judgement(status=Status.OK, probability=0.8 if is_progress(text) else 0.2, answer_mass=1.0)
        for text in TEXTS
    }
    unparsed = Judgement(status=Status.UNPARSED, probability=float("nan"), answer_mass=0.0)
    captions = [JudgedCaption(caption=caption_of(text), judgement=said) for text, said in ok.items()]
    captions.append(JudgedCaption(caption=caption_of("You reach the treasure!"), judgement=unparsed))
    provenance = Provenance(
        rubric_id="toy",
        rubric_version="1",
        rubric_hash="0",
        pairs_hash="",
        model="toy",
        engine="scripted",
        fingerprint="0",
    )
    counts = {caption_of(text).id: 3 for text in TEXTS}
    write_judgements(path, Judgements(captions=captions, pairs=[], counts=counts, threshold=0.5, provenance=provenance))
    return path


def train(run_dir: Path, file: Path, name: str, steps: int, *overrides: str) -> dict:
    settings = [
        f"run_dir={run_dir}",
        f"total_env_steps={steps}",
        "env.id=tests.toy_environments:Corridor-v0",
        "env.options={length: 6}",
        "env.max_episode_steps=30",
        f"reward_model.name={name}",
        f"reward_model.judgements={file}",
        "reward_model.patience=2",
        "reward_model.batch_size=8",
        "policy.hidden_size=16",
        "policy.core_size=16",
        "learner.epochs=1",
        "learner.minibatches=1",
        "annotator.rubric=nethack_progress",
        "logging.console=plain",
        "logging.tensorboard=false",
        *overrides,
    ]
    assert launch(load_config(preset="debug", overrides=settings)) == 0
    run, _ = find_run(str(run_dir))
    return json.loads(run.summary.read_text())


def test_the_file_of_a_further_term_is_trained_on_first_too(file, tmp_path):
    model = f"{{name: classification, judgements: {file}, batch_size: 8, patience: 2}}"
    train(tmp_path / "run", file, "counts", 512, "reward_model.judgements=", f"terms.kept.model={model}")
    run, _ = find_run(str(tmp_path / "run"))
    assert run.reward_model_of("kept").is_dir()
    assert not run.reward_model.exists()
    kept = load_latest(run.checkpoints)["annotation"]["terms"]["kept"]
    assert kept["trainer"]["model"]["is_frozen"]
    assert kept["annotator"] == {}, "nobody was asked"


@pytest.mark.parametrize("name", ["retrieval", "classification", "ranking"])
def test_it_is_trained_first_and_frozen_and_a_resumed_run_does_not_train_it_again(
    name, file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(trained_model, "PROGRESS_INTERVAL_S", 0.0)
    summary = train(tmp_path / "run", file, name, 512)
    said = capsys.readouterr()
    assert "answers from" in said.out + said.err
    assert "frozen" in said.out + said.err
    assert summary.get("annotations_total") is None, "nobody was asked"
    rewarded = {caption["text"] for caption in summary["top_rewarded"]}
    assert rewarded
    assert all(is_progress(text) for text in rewarded)
    run, _ = find_run(str(tmp_path / "run"))
    first = load_latest(run.checkpoints)["annotation"]["trainer"]["model"]
    file.unlink()
    monkeypatch.setattr(trained_model, "read_judgements", lambda path: pytest.fail("trained again"))
    train(tmp_path / "run", file, name, 1024)
    again = load_latest(run.checkpoints)["annotation"]["trainer"]["model"]
    if name != "retrieval":
        np.testing.assert_array_equal(
            first["fitting"]["best"]["layers.0.weight"], again["fitting"]["best"]["layers.0.weight"]
        )
    assert again["is_frozen"]
    model, config, env_steps, paid = load_reward_model(str(tmp_path / "run"))
    assert (config.reward_model.name, env_steps) == (name, 1024)
    assert sum(paid.values()) > 0
    margins = model.margins([caption_of(text) for text in TEXTS])
    assert [margin > 0 for margin in margins] == [is_progress(text) for text in TEXTS]


def test_pairs_of_the_file_go_before_pairs_made_of_its_single_judgements(file):
    config = load_config(preset="debug", overrides=["reward_model.name=ranking", f"reward_model.judgements={file}"])
    judgements = trained_model.read_judgements(file)
    model = trained_model.build_model(config)
    made = trained_model._evidence(config, model.asks, judgements)
    assert len(made) > len(TEXTS)
    assert {is_progress(item.pair.first.text) - is_progress(item.pair.second.text) for item in made} <= {-1, 0, 1}
    assert all(
        (item.judgement.preference > 0.9) == (is_progress(item.pair.first.text) > is_progress(item.pair.second.text))
        for item in made
    )
    said = PairJudgement(status=Status.OK, preference=0.5, answer_mass=1.0, position_bias=0.0)
    pair = JudgedPair(pair=CaptionPair(first=caption_of(TEXTS[0]), second=caption_of(TEXTS[1])), judgement=said)
    with_pairs = Judgements(
        captions=judgements.captions,
        pairs=[pair],
        counts=judgements.counts,
        threshold=0.5,
        provenance=judgements.provenance,
    )
    assert trained_model._evidence(config, model.asks, with_pairs) == [pair]


def test_a_file_that_is_missing_is_one_line_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match="no judgement file"):
        train(tmp_path / "run", tmp_path / "absent.sqlite", "retrieval", 100)
    assert not (tmp_path / "run").exists()


def test_a_stop_request_ends_the_training_before_the_policys_as_any_other(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trained_model, "PROGRESS_INTERVAL_S", -1.0)
    monkeypatch.setattr(
        Console, "say", lambda console, text: "gradient steps" in text and os.kill(os.getpid(), SIGTERM)
    )
    with pytest.raises(FileNotFoundError):  # exit code 0, and no summary: the policy was not trained
        train(tmp_path / "run", file, "ranking", 512, "reward_model.patience=1000000", "reward_model.steps_per_turn=1")
    said = "delphi train: stopped while it trained the reward model; the same command starts or continues the run\n"
    assert capsys.readouterr().err == said


def test_a_run_without_a_model_yet_says_so(file, tmp_path):
    config = load_config(preset="debug", overrides=[f"run_dir={tmp_path / 'run'}"])
    run, _ = open_run(config)
    run.release()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        load_reward_model(str(tmp_path / "run"))
