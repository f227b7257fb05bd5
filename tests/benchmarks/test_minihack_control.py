import json
from pathlib import Path

import pytest

from configs.loading import load_config
from configs.service_schema import ServiceConfig
from llm_server.rubric_file import load_rubric
from llm_server.scripted_engine import ScriptedEngine
from tests.benchmarks.minihack_control import BAND, MIN_COUNT, judged_captions, overrides, permute

CAPTIONS = [[f"You hum; tune {n} = {n}.  Ouch!", 100 - n, n / 100] for n in range(4 * BAND + 2)] + [["Rare.", MIN_COUNT - 1, 0.99]]


@pytest.mark.parametrize("seed", range(5))
def test_the_control_keeps_the_set_of_answers_and_nobodys_own(seed: int) -> None:
    permuted = permute(CAPTIONS, seed)
    original = {text: probability for text, count, probability in CAPTIONS if count >= MIN_COUNT}
    assert sorted(permuted.values()) == sorted(original.values())
    assert not [text for text in original if permuted[text] == original[text]]
    ranks = {text: rank for rank, text in enumerate(original)}
    sources = {probability: text for text, probability in original.items()}
    assert max(abs(ranks[text] - ranks[sources[permuted[text]]]) for text in permuted) < 2 * BAND  # the last band takes the rest


def test_seeds_permute_differently_and_the_same_seed_alike() -> None:
    assert permute(CAPTIONS, 1) == permute(CAPTIONS, 1) != permute(CAPTIONS, 2)


def test_a_run_gets_exactly_the_permuted_answers(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"threshold": 0.4, "captions": CAPTIONS}))
    config = load_config(preset="minihack_lockeddoor")
    judged = judged_captions(path, config)  # read, not played again
    config = load_config(preset="minihack_lockeddoor", overrides=overrides(judged, seed=3))
    assert (config.service.engine, config.reward_model.threshold) == ("scripted", 0.4)
    engine, rubric = ScriptedEngine(ServiceConfig(script=config.service.script)), load_rubric(config.annotator.rubric)
    permuted = permute(CAPTIONS, 3)
    asked = [rubric.item_text(text.encode()) for text in permuted]  # what the judge puts to an engine
    assert [score.probability for score in engine.score(asked)] == list(permuted.values())
