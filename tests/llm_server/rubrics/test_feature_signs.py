"""The packaged model is asked whether more of a feature is good for a task: held to labelled features, and for a linear
program."""

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.programs.command import main
from llm_server.engines.engine import Engine
from llm_server.offline.audit_metrics import auc
from llm_server.offline.caption_file import read_labelled
from llm_server.rubrics.loading import load_rubric
from llm_server.service import judge
from reward_models.programs.compiling import compile_program

DATA = Path(__file__).parents[1] / "data"
TASK = "Pick up the key, open the locked door and go to the goal."
DOORKEY = ("--preset", "minigrid_doorkey", "env.id=MiniGrid-DoorKey-5x5-v0", "env.features=[minigrid]")


@pytest.fixture(scope="module")
def engine(smollm2: Engine) -> Engine:
    return smollm2.under(load_rubric("feature_sign"))


@pytest.mark.parametrize(
    ("file", "least"), [pytest.param("feature_signs", 0.8, marks=pytest.mark.slow), ("feature_signs_held_out", 0.72)]
)
def test_what_is_good_for_a_task_is_told_from_what_is_bad_better_than_by_chance(
    engine: Engine, file: str, least: float
) -> None:
    rubric, features = load_rubric("feature_sign"), read_labelled(str(DATA / f"{file}.jsonl"))
    texts = [rubric.asked_text(feature.text.encode(), feature.about.encode()) or "" for feature in features]
    probabilities = np.array([score.probability for score in engine.score(texts)])
    assert auc(probabilities, np.array([feature.is_positive for feature in features])) >= least


def test_its_answers_make_a_linear_program(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "linear.py"
    monkeypatch.setattr(judge, "build_engine", lambda config, rubric: engine)
    monkeypatch.setattr(engine, "close", lambda: None)  # other tests use it too
    assert main(["--task", TASK, "--out", str(out), "--steps", "400", "--json", *DOORKEY]) == 0
    facts = json.loads(capsys.readouterr().out)
    features = {feature["name"]: feature for feature in facts["features"]}
    assert (facts["model"], facts["rubric"]) == ("smollm2", "feature_sign")
    assert max(abs(feature["weight"]) for feature in features.values()) == pytest.approx(1)
    assert features["distance_to_key"]["weight"] < 0
    for feature in features.values():
        assert np.sign(feature["weight"]) == np.sign(feature["probability"] - facts["theta"])
    text = out.read_text()
    assert f"theta {facts['theta']:.3f}" in text
    assert set(compile_program(text, [*features, *facts["never_varied"]]).features) <= set(features)
