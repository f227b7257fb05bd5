import json
from pathlib import Path

import pytest

from configs.loading import load_config
from llm_server.engines.building import ScriptedEngine
from llm_server.rubrics.loading import load_rubric
from tests.benchmarks.minihack_control import BAND, MIN_COUNT, above, judged_captions, paying, payment, permuted, rarest

CAPTIONS = [[f"You hum; tune {n} = {n}.  Ouch!", 100 - n, n / 100] for n in range(12)] + [
    ["Rare.", MIN_COUNT - 1, 0.99]
]
JUDGED = {"threshold": 0.08, "captions": CAPTIONS}
TEXTS = [text for text, *_ in CAPTIONS]


@pytest.mark.parametrize("place", range(12))
def test_the_turns_put_a_label_once_on_every_other_caption_of_its_band(place: int) -> None:
    (moved,) = zip(*(permuted(JUDGED, [TEXTS[place]], turn) for turn in range(1, BAND)), strict=True)
    ranks = sorted([place, *map(TEXTS.index, moved)])
    assert ranks == list(range(ranks[0], ranks[0] + BAND))  # BAND neighbours, the caption itself among them
    assert ranks[-1] < 12  # a caption that random play hardly shows takes no part
    if 2 <= place < 10:
        assert ranks[BAND // 2] == place


def test_each_paid_caption_moves_in_its_own_band_and_a_rare_one_is_left_out() -> None:
    assert permuted(JUDGED, [TEXTS[2], TEXTS[9], "Rare."], 1) == [TEXTS[3], TEXTS[10]]
    with pytest.raises(ValueError, match="turn is 1 to 4, got 5"):
        permuted(JUDGED, [TEXTS[2]], BAND)


def test_label_sets_are_what_lies_above_the_threshold_with_a_margin() -> None:
    assert above(JUDGED, 0.015) == [TEXTS[10], TEXTS[11], "Rare."]
    assert above(JUDGED, -0.015) == [*TEXTS[7:12], "Rare."]
    assert rarest(JUDGED) == [TEXTS[11]]


def _answers(overrides: list[str], texts: list[str]) -> list[bool]:
    """Whether a run with these settings pays for the captions, by what its judge puts to its engine."""
    config = load_config(preset="minihack_lockeddoor", overrides=overrides)
    engine, rubric = ScriptedEngine(config.service), load_rubric(config.annotator.rubric)
    scores = engine.score([rubric.item_text(text.encode()) for text in texts])
    assert config.reward_model.name == "retrieval"
    return [score.probability > config.reward_model.threshold for score in scores]


def test_a_run_pays_for_exactly_the_captions_named() -> None:
    assert _answers(payment([TEXTS[3], TEXTS[11]]), TEXTS) == [n in (3, 11) for n in range(len(TEXTS))]
    assert _answers(payment(["It."]), ["It.", "Item", "It.  It."]) == [True, False, False]


def test_a_keyword_pays_wherever_it_stands() -> None:
    assert _answers(paying(["crashes open"]), ["The door crashes open!  Ouch!", "The door is open."]) == [True, False]


def test_what_was_judged_once_is_not_judged_again(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(JUDGED))
    assert judged_captions(path, load_config(preset="minihack_lockeddoor")) == JUDGED
