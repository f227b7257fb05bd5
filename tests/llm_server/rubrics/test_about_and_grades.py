"""Rubrics that judge items about a second text, and rubrics with graded answers: read, checked, asked."""

import dataclasses

import pytest

from llm_server.rubrics.loading import distinct_rubrics, load_rubric, parse_rubric
from llm_server.rubrics.rubric import AboutItem

ABOUT = """
id: about
version: 1
goal: The goal is reached.
style: completion
instructions: Judge.
about_label: "Goal:"
positive: " yes"
negative: " no"
threshold: auto
examples:
  - {about: open the door, item: The door opens., positive: true}
  - {about: find gold, item: The door opens., positive: false}
calibration:
  items: [{about: find gold, item: A wall.}]
"""
GRADED = """
id: graded
version: 1
goal: How much is won.
style: completion
instructions: Judge.
answers: [{word: " none", value: 0}, {word: " some", value: 0.5}, {word: " much", value: 1}]
threshold: 0.5
examples:
  - {item: A wall., kind: " none"}
  - {item: Gold., kind: " much"}
"""
HASHES_BEFORE = {
    "nethack_gold": ("d893e4d9b94a2189", "0a0d77a2ad9349cf"),
    "nethack_progress": ("e4c43cbf4d79d825", "423b2bf1e9604f6e"),
    "minihack_progress_chat": ("fad38d99f6fcd601", "a06305dbbfdf148e"),
}


@pytest.mark.parametrize(
    ("base", "old", "new", "complaint"),
    [
        (ABOUT, "about: find gold, item: The door opens.,", "item: A wall.,", "example 'A wall.' has no `about`"),
        (ABOUT, '\nabout_label: "Goal:"', "", "has an `about`, and the rubric no about_label"),
        (ABOUT, "{about: find gold, item: A wall.}", "A wall.", "calibration item 'A wall.' has no `about`"),
        (ABOUT, "{about: find gold, item: A wall.}", "{about: a}", "'mine.yaml: calibration: item 1': missing item"),
        (ABOUT, "{about: find gold, item: A wall.}", "{item: a}", "items must be a list of texts"),
        (ABOUT, "{about: find gold, item: A wall.}", "{about: find gold, item: The door opens.}", "also an example"),
        (ABOUT, "about: open the door,", "about: ' \u200b',", "is empty"),
        (ABOUT, "about: open the door,", "about: find gold,", "'find gold Message: The door opens.' has two answers"),
        (
            ABOUT,
            "threshold: auto",
            "threshold: auto\npairs: {instructions: P., first: a, second: b}",
            "about_label and",
        ),
        (GRADED, "version: 1", "version: 1\npositive: ' yes'", "stand in place of positive, negative and kinds"),
        (GRADED, "version: 1", "version: 1\npositive_kinds: [' a']", "stand in place of positive, negative and kinds"),
        (GRADED, "value: 0.5", "value: 1.5", "answers: every value must lie in 0 to 1, got [0, 1.5, 1]"),
        (GRADED, "value: 0.5", "value: .nan", "value must be a number"),
        (GRADED, "value: 0.5", "worth: 0.5", "'mine.yaml: answer 2': unknown key 'worth'"),
        (GRADED, ', {word: " some", value: 0.5}, {word: " much", value: 1}', "", "answers: wanted at least two"),
        (GRADED, '" some"', '" None "', "every answer must differ"),
        (GRADED, 'kind: " much"', "positive: true", "every example needs one of the kinds"),
        (GRADED, 'kind: " much"', 'kind: " most"', "every example needs one of the kinds"),
        (GRADED, "threshold: 0.5", "threshold: auto", "threshold auto needs calibration items"),
    ],
)
def test_a_malformed_one_says_what_is_wrong(base, old, new, complaint):
    assert old in base
    with pytest.raises(ValueError) as error:
        parse_rubric(base.replace(old, new), "mine.yaml")
    assert complaint in str(error.value)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_an_item_is_judged_about_stands_on_the_line_before_it():
    rubric = parse_rubric(ABOUT, "mine.yaml")
    before, after = rubric.question().completion_prompt()
    assert before == (
        "Judge.\n\nGoal: open the door\nMessage: The door opens.\nAnswer: yes\n\n"
        "Goal: find gold\nMessage: The door opens.\nAnswer: no\n\nGoal:"
    )
    assert after == "\nAnswer:"
    assert rubric.asked_text(b"It's a\nwall.", b"find\tgold ") == "find gold\nMessage: It's a wall."
    assert rubric.calibration.items == (AboutItem(about="find gold", item="A wall."),)
    assert rubric.shown_text(rubric.calibration.items[0]) == "find gold\nMessage: A wall."


@pytest.mark.parametrize(("item", "about"), [(b"\xff", b"find gold"), (b"A wall.", b"\xff"), (b"A wall.", b" \n")])
def test_what_is_no_text_is_not_asked(item, about):
    assert parse_rubric(ABOUT, "mine.yaml").asked_text(item, about) is None


def test_an_about_where_there_is_none_to_be_and_none_where_there_is_are_refused():
    with pytest.raises(ValueError, match=r"'about' judges every item about something \(its about_label is 'Goal:'\)"):
        parse_rubric(ABOUT, "mine.yaml").check_about(False)
    with pytest.raises(ValueError, match="'graded' has no about_label, it judges items alone: leave `about` out"):
        parse_rubric(GRADED, "mine.yaml").check_about(True)


def test_graded_answers_are_asked_in_their_order_with_their_values():
    question = parse_rubric(GRADED, "mine.yaml").question()
    assert question.answers == (" none", " some", " much")
    assert question.weights == (0.0, 0.5, 1.0)
    assert question.examples == (("A wall.", " none"), ("Gold.", " much"))


@pytest.mark.parametrize("name", HASHES_BEFORE)
def test_rubrics_without_an_about_or_grades_keep_the_hashes_under_which_judgements_are_stored(name):
    rubric = load_rubric(name)
    assert (rubric.content_hash, rubric.pairs_hash) == HASHES_BEFORE[name]


def test_the_hash_changes_with_about_and_values():
    rubric, graded = parse_rubric(ABOUT, "mine.yaml"), parse_rubric(GRADED, "mine.yaml")
    other_about = dataclasses.replace(rubric.examples[0], about="open it")
    other_value = dataclasses.replace(graded.answers[1], value=0.6)
    for one, other in (
        (rubric, dataclasses.replace(rubric, about_label="Aim:")),
        (rubric, dataclasses.replace(rubric, examples=(other_about, *rubric.examples[1:]))),
        (graded, dataclasses.replace(graded, answers=(graded.answers[0], other_value, graded.answers[2]))),
    ):
        assert one.content_hash != other.content_hash


def test_one_service_has_each_rubric_once_and_no_two_of_one_name():
    rubric, graded = parse_rubric(ABOUT, "mine.yaml"), parse_rubric(GRADED, "mine.yaml")
    assert distinct_rubrics([rubric, graded, parse_rubric(ABOUT, "again.yaml")]) == [rubric, graded]
    with pytest.raises(ValueError, match="two different rubrics have the id 'about' and version '1'"):
        distinct_rubrics([rubric, dataclasses.replace(rubric, instructions="Judge well.")])
    with pytest.raises(ValueError, match="got no rubric"):
        distinct_rubrics([])
