"""Changing the goal changes what is rewarded: the packaged model under the goals' rubrics, on held-out captions."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import pytest

from llm_server.engines.engine import Engine
from llm_server.rubrics.loading import load_rubric
from llm_server.service.calibration import calibrate

DATA = Path(__file__).parents[1] / "data"
MAX_PER_CLASS = 20
"""A few dozen captions per goal keep this fast."""
MIN_AUC = {
    "nethack_combat": 0.9,
    "nethack_gold": 0.9,
    "nethack_descend": 0.8,
    "nethack_explore": 0.9,
    "minihack_progress": 0.85,
    "minigrid_progress": 0.9,
}
NOTHINGS = ("It's a wall.", "It's solid stone.", "In what direction?", "You see here a rock.", "The newt bites!")


@cache
def held_out(name: str) -> dict[str, bool]:
    """Evenly spaced captions of both classes."""
    rows = [json.loads(line) for line in (DATA / f"{name}_held_out.jsonl").read_text().splitlines()]
    yes, no = ([row["caption"] for row in rows if row["helpful"] == label] for label in (1, 0))
    return dict.fromkeys(spaced(yes), True) | dict.fromkeys(spaced(no), False)


def spaced(captions: list[str]) -> list[str]:
    return captions[:: -(-len(captions) // MAX_PER_CLASS)]


def gold_and_combat() -> tuple[list[str], list[str]]:
    """Captions about gold alone and about a fight alone."""
    gold, combat = held_out("nethack_gold"), held_out("nethack_combat")
    about_gold = [text for text, is_gold in gold.items() if is_gold and not combat.get(text)]
    about_combat = [text for text, is_combat in combat.items() if is_combat and not gold.get(text)]
    return about_gold, about_combat


@pytest.fixture(scope="module")
def judged(smollm2):
    """Of a rubric's name: probabilities under it, and its theta."""
    return cache(lambda name: judged_by(smollm2, name))


def judged_by(smollm2: Engine, name: str) -> tuple[dict[str, float], float]:
    rubric = dataclasses.replace(load_rubric(name), pairs=None)
    engine = smollm2.under(rubric)
    of_both = (
        [text for side in gold_and_combat() for text in side] if name in ("nethack_gold", "nethack_combat") else []
    )
    captions = list(dict.fromkeys([*held_out(name), *NOTHINGS, *of_both]))
    scores = engine.score([rubric.item_text(text.encode()) for text in captions])
    return {text: score.probability for text, score in zip(captions, scores, strict=True)}, calibrate(
        engine, rubric
    ).threshold


def auc(above: list[float], below: list[float]) -> float:
    return sum((a > b) + 0.5 * (a == b) for a in above for b in below) / (len(above) * len(below))


@pytest.mark.parametrize(("goal", "other"), [("nethack_gold", "nethack_combat"), ("nethack_combat", "nethack_gold")])
def test_what_a_goal_is_about_ranks_higher_under_it_than_under_another(goal, other, judged):
    about_gold, about_combat = gold_and_combat()
    wanted, unwanted = (about_gold, about_combat) if goal == "nethack_gold" else (about_combat, about_gold)
    assert min(len(wanted), len(unwanted)) >= 10
    under_goal, under_other = judged(goal)[0], judged(other)[0]
    assert auc([under_goal[text] for text in wanted], [under_goal[text] for text in unwanted]) >= 0.9
    assert auc([under_other[text] for text in wanted], [under_other[text] for text in unwanted]) <= 0.1


@pytest.mark.parametrize(("goal", "other"), [("nethack_gold", "nethack_combat"), ("nethack_combat", "nethack_gold")])
def test_what_a_goal_is_about_is_rewarded_under_it_and_not_under_another(goal, other, judged):
    about_gold, about_combat = gold_and_combat()
    wanted = about_gold if goal == "nethack_gold" else about_combat

    def rewarded(name: str) -> float:
        given, theta = judged(name)
        return sum(given[text] > theta for text in wanted) / len(wanted)

    assert rewarded(goal) >= 0.6
    assert rewarded(other) <= 0.25


@pytest.mark.parametrize("name", MIN_AUC)
def test_a_goal_is_told_from_everything_else(name, judged):
    given, theta = judged(name)
    yes, no = (
        [given[text] for text, is_positive in held_out(name).items() if is_positive == label] for label in (True, False)
    )
    measured = auc(yes, no)
    assert measured >= MIN_AUC[name], f"AUC {measured:.3f} on {len(yes)} positive and {len(no)} negative captions"
    if name != "minigrid_progress":  # which is shown no such message
        assert not {text: given[text] for text in NOTHINGS if given[text] > theta}
