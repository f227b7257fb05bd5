"""Every built-in rubric works with the packaged model, and none is measured on its own examples."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from configs.yaml_text import read_yaml
from llm_server.engines.models import bundled_model_folder
from llm_server.engines.prompt_tokens import PromptTokens
from llm_server.rubrics.loading import FOLDER, built_in_rubrics, load_rubric
from llm_server.rubrics.rubric import Rubric

DATA = Path(__file__).parents[1] / "data"
GOALS = ("combat", "gold", "descend", "explore")
COMPLETION = ["minigrid_progress", "minihack_progress", "nethack_progress", *(f"nethack_{goal}" for goal in GOALS)]
ABOUT = [
    "feature_sign",
    "history_relevance",
    "minigrid_answers",
    "minigrid_subgoal",
    "minihack_subgoal",
    "zero_shot_yes",
]
"""Completion rubrics that judge items about a second text."""
FOR_LARGE_MODELS = ["feature_sign_chat", "sensible_goal"]
"""Chat rubrics about a second text; theta is 0.5, as it was published or as the model means it."""
STATES = ["minihack_prospects"]
"""Completion rubrics for described states."""
CHOSEN_ON_A_PART = [name for name in COMPLETION if name != "nethack_progress"]
TASKS = ["feature_signs", "feature_signs_held_out"]
"""Labelled features of tasks, for `feature_sign`."""


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled_model_folder())


def captions(name: str) -> set[str]:
    return {json.loads(line)["caption"] for line in (DATA / f"{name}.jsonl").read_text().splitlines()}


def texts_shown(rubric: Rubric) -> set[str]:
    pairs = rubric.pairs.examples if rubric.pairs else ()
    return {example.item for example in rubric.examples} | {
        text for example in pairs for text in (example.first, example.second)
    }


def test_every_goal_has_a_rubric_for_small_models_for_instruct_models_and_for_those_that_think_aloud():
    of_goals = [f"{name}{style}" for name in COMPLETION for style in ("", "_chat", "_chat_thinking")]
    assert built_in_rubrics() == sorted(of_goals + ABOUT + STATES + FOR_LARGE_MODELS)
    for name in COMPLETION:
        assert load_rubric(name).style == "completion"
        assert load_rubric(f"{name}_chat").style == load_rubric(f"{name}_chat_thinking").style == "chat"
        assert load_rubric(f"{name}_chat_thinking").answer_prefix.endswith("</think>\n\n")


@pytest.mark.parametrize("name", built_in_rubrics())
def test_it_can_be_calibrated_on_what_it_does_not_show(name):
    rubric = load_rubric(name)
    assert rubric.goal
    answered = {example.kind if rubric.answers else example.positive for example in rubric.examples}
    wanted = {graded.word for graded in rubric.answers} or {True, False}
    assert answered == (set() if name == "zero_shot_yes" else wanted)
    assert bool(rubric.calibration.items) == (name not in FOR_LARGE_MODELS)
    assert not texts_shown(rubric) & {*rubric.calibration.items, *rubric.calibration.positives}


@pytest.mark.parametrize("name", built_in_rubrics())
def test_one_that_extends_another_holds_only_differences(name):
    content = read_yaml(FOLDER.joinpath(f"{name}.yaml").read_text())
    if base := content.get("extends"):
        ours, theirs = load_rubric(name), load_rubric(base)
        same = [key for key in {*content} - {"extends", "version"} if getattr(ours, key) == getattr(theirs, key)]
        assert not same


@pytest.mark.parametrize("name", built_in_rubrics())
def test_its_answers_are_single_tokens_where_they_stand(name, tokenizer):
    rubric = load_rubric(name)
    assert (rubric.pairs is None) == (name in ABOUT + STATES + FOR_LARGE_MODELS)
    assert bool(rubric.about_label) == (name in ABOUT + FOR_LARGE_MODELS)
    for question in (rubric.question(), *([rubric.pair_question()] if rubric.pairs else [])):
        prompt = PromptTokens(tokenizer, question, model="smollm2", max_text_tokens=512, context=2048)
        assert len(set(prompt.answers)) == len(question.answers)
        assert [tokenizer.decode([token]) for token in prompt.answers] == list(question.answers)
        if question.answer_prefix:
            assert tokenizer.decode(prompt.suffix).endswith(question.answer_prefix)


@pytest.mark.parametrize("name", [*CHOSEN_ON_A_PART, *STATES])
def test_what_it_is_measured_on_is_neither_shown_nor_chosen_from(name):
    held_out = captions(f"{name}_held_out")
    assert not held_out & captions(name)
    for rubric in map(load_rubric, [name] if name in STATES else [name, f"{name}_chat"]):
        assert not held_out & (texts_shown(rubric) | {*rubric.calibration.items, *rubric.calibration.positives})


def test_the_messages_that_reward_is_measured_on_were_not_chosen_from():
    held_out, rubric = captions("nethack_messages_held_out"), load_rubric("nethack_progress")
    assert not held_out & captions("nethack_messages_dev")
    assert not held_out & (texts_shown(rubric) | {*rubric.calibration.items, *rubric.calibration.positives})


def test_the_tasks_that_signs_of_features_are_measured_on_are_neither_shown_nor_chosen_from():
    chosen, held_out = (
        {json.loads(line)["about"] for line in (DATA / f"{name}.jsonl").read_text().splitlines()} for name in TASKS
    )
    assert not held_out & chosen
    for rubric in map(load_rubric, ("feature_sign", "feature_sign_chat")):
        shown = (*rubric.examples, *rubric.calibration.items, *rubric.calibration.positives)
        assert not (held_out | chosen) & {one.about for one in shown}
