"""The rubric that docs/rubrics.md builds step by step works as described there."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.engines.building import build_engine
from llm_server.offline.caption_file import read_labelled
from llm_server.rubrics.loading import load_rubric
from llm_server.service.calibration import calibrate

FOLDER = Path(__file__).parent / "mountain_car"


@pytest.fixture(scope="module")
def caption():
    spec = importlib.util.spec_from_file_location("mountain_car", FOLDER / "mountain_car.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.caption


def test_its_labelled_captions_are_all_that_the_captioner_says(caption):
    grid = [
        (position, velocity) for position in np.linspace(-1.2, 0.6, 400) for velocity in np.linspace(-0.07, 0.07, 57)
    ]
    said = {caption(np.array(observation, np.float32), {}) for observation in grid}
    assert said == {row.text for row in read_labelled(str(FOLDER / "labelled.jsonl"))}


def test_it_tells_swing_and_height_from_a_slow_car_in_the_valley():
    rubric = load_rubric(str(FOLDER / "rubric.yaml"))
    shown = {example.item for example in rubric.examples}
    rows = [row for row in read_labelled(str(FOLDER / "labelled.jsonl")) if row.text not in shown]
    engine = build_engine(ServiceConfig(torch_threads=0), rubric)
    given = [score.probability for score in engine.score([row.text for row in rows])]
    theta = calibrate(engine, rubric).threshold
    yes = [p for p, row in zip(given, rows, strict=True) if row.is_positive]
    no = [p for p, row in zip(given, rows, strict=True) if not row.is_positive]
    assert sum(a > b for a in yes for b in no) / (len(yes) * len(no)) >= 0.9
    assert (sum(p > theta for p in yes) / len(yes) + sum(p <= theta for p in no) / len(no)) / 2 >= 0.75
