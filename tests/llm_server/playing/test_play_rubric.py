"""Which word answers with which action, and the files that say so."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from actors.environments.nethack.action_names import name_of
from actors.environments.nethack.tasks import EXTENDED_ACTIONS
from llm_server.playing.play_rubric import (
    ActionWord,
    PlayExample,
    PlayRubric,
    built_in_play_rubrics,
    load_play_rubric,
)

MINIGRID = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
NETHACK = tuple(name_of(int(key)) for key in EXTENDED_ACTIONS)
PLAIN = PlayRubric(id="mine", version="1", style="completion", instructions="Choose: {actions}.")


def words(rubric: PlayRubric, *names: str) -> list[str]:
    return [answer.word for answer in rubric.rubric(names).answers]


def test_an_action_is_answered_with_its_name_or_the_word_given_for_it() -> None:
    rubric = replace(PLAIN, words=(ActionWord(action="pick up", word="take"), ActionWord(action="fly", word="fly")))
    assert words(rubric, "left", "pick up") == [" left", " take"]
    assert rubric.rubric(["left", "pick up"]).instructions == "Choose: left, take."


def test_actions_whose_words_collide_are_refused_and_letters_tell_them_apart() -> None:
    rubric = replace(PLAIN, words=(ActionWord(action="turn left", word="Left"),))
    with pytest.raises(ValueError, match=r"the actions 'left' and 'turn left' have the same answer 'Left': name anoth"):
        words(rubric, "left", "turn left")
    with pytest.raises(ValueError, match=r"the action 'far north' has the answer 'far north', wanted one word"):
        words(rubric, "far north")
    lettered = replace(rubric, letters=True)
    assert words(lettered, "left", "turn left", "far north") == [" A", " B", " C"]
    assert "A: left, B: turn left" in lettered.rubric(["left", "turn left"]).instructions


def test_more_than_26_actions_have_letters_too_up_to_a_limit() -> None:
    assert words(replace(PLAIN, letters=True), *NETHACK)[-3:] == [" Z", " AA", " AB"]
    with pytest.raises(ValueError, match=r"the environment has 79 actions, and there are 78 letters"):
        words(replace(PLAIN, letters=True), *map(str, range(79)))


def test_examples_of_actions_that_the_environment_lacks_are_not_shown() -> None:
    examples = (PlayExample(item="A wall.", action="left"), PlayExample(item="A monster.", action="fight"))
    shown = replace(PLAIN, examples=examples).rubric(["left", "right"]).question()
    assert shown.examples == (("A wall.", " left"),)


def test_the_last_caption_follows_the_state() -> None:
    assert PLAIN.asked_text("A door.", "It is locked.") == "A door. Message: It is locked."
    assert PLAIN.asked_text("A door.", "") == "A door."
    assert PLAIN.asked_text("", "") == "Nothing."
    assert replace(PLAIN, message_label="").asked_text("A door.", "It is locked.") == "A door."


@pytest.mark.parametrize(("name", "actions"), [("minigrid", MINIGRID), ("nethack", NETHACK[:23]), ("nethack", NETHACK)])
def test_built_in_files_fit_their_environments(name: str, actions: tuple[str, ...]) -> None:
    found = load_play_rubric(name)
    assert {shown.action for shown in found.examples} <= set(actions)
    question = found.rubric(actions).question()
    assert len(question.answers) == len(actions)
    assert {answer for _, answer in question.examples} <= set(question.answers)
    assert "{actions}" not in question.instructions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id: x", "missing version, style, instructions"),
        ("wordz: []", "unknown key 'wordz' (did you mean 'words'?)"),
        ("id: x\nversion: '1'\nstyle: talk\ninstructions: go", "style is 'talk'"),
        ("id: x\nversion: '1'\nstyle: chat\ninstructions: go\nmax_item_chars: 0", "max_item_chars must be at least 1"),
        ("[", "cannot be read: not YAML"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_play_rubric(str(file))
    assert "\n" not in str(raised.value)


def test_an_unknown_name_is_told_with_what_there_is() -> None:
    assert built_in_play_rubrics() == ["minigrid", "nethack"]
    with pytest.raises(ValueError, match=r"no play rubric 'nethak' \(did you mean 'nethack'\?\): give the path of"):
        load_play_rubric("nethak")
