"""Labels of one judge are never mixed with another's, with the real model: an edited rubric is refused, another model's
labels take the place of the former's."""

import copy
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.launch import launch
from configs.annotation_schema import AnnotatorConfig, RewardModelConfig, ServiceConfig
from configs.checks import ConfigError
from configs.loading import load_config
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_archive import CaptionArchive
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.feedback import CaptionQuestions
from llm_server.client import AnnotationClient
from llm_server.engines import transformers_engine
from llm_server.engines.building import build_engine
from llm_server.engines.models import bundled_model_folder
from llm_server.rubrics.loading import load_rubric
from reward_models.building import build_reward_model
from reward_models.pipeline import AnnotationPipeline
from reward_models.shaping import RewardShaping
from reward_models.table import RewardTable
from reward_models.training import RewardTrainer
from tests.llm_server.running_service import RunningService

RUBRIC = """
id: corridor
version: "1"
goal: Somebody walks on.
style: completion
instructions: Did somebody get on?
positive: " yes"
negative: " no"
examples:
  - {positive: true, item: "You advance."}
  - {positive: false, item: "It's a wall."}
calibration:
  items: ["Nothing happens."]
"""
STEPS = 8 * 16


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of the packaged model whose weights may be replaced."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in bundled_model_folder().iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def replace_model(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.1
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def train(tmp_path: Path, model: Path, steps: int) -> int:
    settings = [
        f"run_dir={tmp_path / 'run'}",
        f"total_env_steps={steps}",
        "env.id=tests.toy_environments:Corridor-v0",
        "env.options={length: 6, slip: 0.2}",
        "env.max_episode_steps=30",
        "service.engine=transformers",
        f"service.model={model}",
        f"service.store={tmp_path / 'judgements.sqlite'}",
        f"annotator.rubric={tmp_path / 'rubric.yaml'}",
        "annotator.labels_per_turn=3",
        "policy.core_size=16",
        "policy.hidden_size=16",
        f"logging.interval_env_steps={STEPS}",
        "logging.console=quiet",
        "logging.tensorboard=false",
    ]
    return launch(load_config(preset="debug", overrides=settings))


def probabilities(archive: Path) -> dict[str, float | None]:
    with sqlite3.connect(archive) as connection:
        found = dict(connection.execute("SELECT text, probability FROM captions"))
    connection.close()
    return found


def test_an_edited_rubric_is_refused_and_another_model_brings_labels_of_its_own(
    tmp_path: Path, model: Path, capsys
) -> None:
    rubric, run_dir = tmp_path / "rubric.yaml", tmp_path / "run"
    rubric.write_text(RUBRIC)
    assert train(tmp_path, model, 2 * STEPS) == 0
    before = probabilities(run_dir / "captions.sqlite")
    labels = {probability for probability in before.values() if probability is not None}
    assert len(labels) == 6, "two turns, which leave captions to be asked about"

    rubric.write_text(RUBRIC.replace("You advance.", "You go on."))
    with pytest.raises(
        ConfigError, match=r"annotator.rubric: the labels of .*run were made by a rubric of hash \w+, this one has \w+"
    ):
        train(tmp_path, model, 12 * STEPS)
    assert probabilities(run_dir / "captions.sqlite") == before

    rubric.write_text(RUBRIC)
    replace_model(model)
    assert train(tmp_path, model, 12 * STEPS) == 0
    after = probabilities(run_dir / "captions.sqlite")
    assert after.keys() >= before.keys()
    assert None not in after.values()
    assert not set(after.values()) & labels, "no label of the former judge is left"
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["annotations_dropped"] == len(labels)
    assert "another judge answers" in (run_dir / "log.txt").read_text()


def test_a_judge_replaced_behind_its_address_while_a_run_goes_on_leaves_no_label(tmp_path: Path, caplog) -> None:
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    rubric = load_rubric(str(tmp_path / "rubric.yaml"))
    engine = build_engine(ServiceConfig(), rubric)
    other = copy.copy(engine)
    other._model = copy.deepcopy(engine._model)
    with torch.no_grad():
        other._model.model.norm.weight *= 1.1
    other._head = other._model.get_output_embeddings()
    other._single = other._prepared(engine._single.prompt)
    other.fingerprint = transformers_engine._fingerprint(other._model, other._tokenizer, other.name)

    book = CaptionBook(100, 1000, CaptionArchive(tmp_path / "captions.sqlite"))
    address = ""
    annotator = Annotator(
        lambda: AnnotationClient(address, rubric, 60.0),
        CaptionQuestions(book),
        AnnotatorConfig(batch_size=2, request_timeout_s=60.0),
    )
    settings = RewardModelConfig(output="probability")
    trainer = RewardTrainer(build_reward_model(settings), RewardShaping(settings, 0), book, 1)
    pipeline = AnnotationPipeline(book, trainer, annotator=annotator, config=settings)
    texts = {1: "You advance.", 2: "It's a wall.", 3: "You stand still."}
    pipeline.report(texts, {1: 4, 2: 2, 3: 1}, "0.0", 0, 0)

    def rewards(table: RewardTable) -> list[float | None]:
        values, known = table.look_up(np.arange(1, 5, dtype=np.uint64))
        return [value if is_known else None for value, is_known in zip(values.tolist(), known.tolist(), strict=True)]

    asked = [*texts.values(), "You fall."]
    said, anew = ([score.probability for score in judge.score(asked)] for judge in (engine, other))
    first = RunningService(rubric, engine)
    address = first.address
    assert rewards(pipeline.turn(3)) == [*(pytest.approx(p, abs=1e-5) for p in said[:3]), None]
    first.close()

    second = RunningService(rubric, other, port=int(address.rpartition(":")[2]))
    pipeline.report({4: "You fall."}, {4: 1}, "0.0", 1, 0)
    assert rewards(pipeline.turn(1)) == [None, None, None, pytest.approx(anew[3], abs=1e-5)], (
        "the former's are dropped at once"
    )
    assert rewards(pipeline.turn(9)) == [pytest.approx(p, abs=1e-5) for p in anew]
    assert pipeline.metrics()["annotations_dropped"] == 3
    assert "3 are dropped, every caption is asked anew" in caplog.text
    pipeline.close()
    second.close()
    archived = probabilities(tmp_path / "captions.sqlite")
    assert [archived[text] for text in asked] == pytest.approx(anew, abs=1e-5)
