"""The prompt that a report shows for the term that pays goals."""

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.report.prompt import prompt_template
from configs.loading import load_config
from llm_server.rubrics.loading import load_rubric

PROGRESS = load_rubric("nethack_progress").content_hash


def template(*overrides: str, hashes: str = f"aaa goals={PROGRESS}") -> dict[str, Any]:
    """Of a run whose judge was on record with these rubrics."""
    nobody = SimpleNamespace(of=lambda term: SimpleNamespace(judge={}))
    config = load_config(preset="debug", overrides=["goals.sources=[rubric]", *overrides])
    run: Any = SimpleNamespace(config=config, learnt=nobody, starts=[{"rubric_hash": hashes}])
    return prompt_template(run, "goals")


@pytest.mark.parametrize(("hashes", "is_edited"), [(f"aaa goals={PROGRESS}", False), (f"{PROGRESS} goals=aaa", True)])
def test_accomplishments_are_asked_about_by_the_rubric_of_goals(hashes: str, is_edited: bool) -> None:
    shown = template(hashes=hashes)
    assert shown["before"].endswith("Message: ")
    assert (shown["hash"], bool(shown["notes"])) == (PROGRESS, is_edited)


def test_items_are_judged_about_goals() -> None:
    shown = template("goals.achieved_by=judged", "goals.rubric=minihack_subgoal", hashes="")
    assert shown["before"].endswith("Task: open the door\nChange: ")
    assert shown["notes"] == ["The judge was asked about each of an item's nearest goals, not “open the door”."]


def test_likeness_alone_asks_no_judge() -> None:
    (note,) = template("goals.achieved_by=similarity")["notes"]
    assert note.startswith("No prompt: an encoder compared items with goals")
