"""Scores from what a model said: shares among the answers, mass over everything, NaN without an allowed answer."""

import math

import pytest

from llm_server.engines.answers import NO_ANSWER, score_of_answers, score_of_text, score_of_top_tokens


def logs(*probabilities):
    return [math.log(p) for p in probabilities]


def test_the_probability_is_a_share_of_the_answers_and_the_mass_is_theirs_together():
    assert score_of_answers(logs(0.6, 0.2)) == pytest.approx((0.75, 0.8))


def test_a_third_answer_counts_half():
    assert score_of_answers(logs(0.3, 0.1, 0.4)) == pytest.approx((0.5 / 0.8, 0.8))
    assert score_of_text("tie", ["first", "second", "tie"]) == (0.5, 1.0)


def test_nan_and_zero_probabilities_are_no_answer():
    assert score_of_answers([math.nan, math.log(0.5)]) is NO_ANSWER
    assert score_of_answers([-9999.0, -9999.0]) is NO_ANSWER
    assert math.isnan(NO_ANSWER.probability)


def test_rounding_gives_no_mass_above_one():
    assert score_of_answers(logs(0.7, 0.3000001)).answer_mass == 1.0


def test_an_unlisted_answer_has_no_more_than_the_least_listed_token_and_than_what_is_left():
    assert score_of_top_tokens([("a", math.log(0.5)), ("x", math.log(0.3))], ["a", "b"]) == pytest.approx(
        (0.5 / 0.7, 0.5)
    )
    assert score_of_top_tokens([("a", math.log(0.5)), ("x", math.log(0.01))], ["a", "b"]) == pytest.approx(
        (0.5 / 0.51, 0.5)
    )
    assert score_of_top_tokens([("x", 0.0)], ["a", "b"]) is NO_ANSWER
    assert score_of_top_tokens([("a", 0.0)], ["A", "B"]) is NO_ANSWER
    assert score_of_top_tokens([], ["a", "b"]) is NO_ANSWER


def test_a_word_within_a_word_is_no_answer():
    assert score_of_text("Nothing was won", [" yes", " no"]) is NO_ANSWER
    assert score_of_text("no.", [" yes", " no"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "probability"),
    [
        ("Yes", 1.0),
        ("**No**, there is no way that this is progress", 0.0),
        ("Yes. There is no doubt", 1.0),
        ("no\n\nMessage: yes", 0.0),
        ("Answer: Yes", 1.0),
        ("**Verdict:** No.", 0.0),
        ("No \N{EM DASH} it is a wall", 0.0),
        ("no, no, perhaps no</think>\n\nYes", 1.0),
        ("<think>no</think>(Yes)", 1.0),
        ("<thought>no</thought>Yes", 1.0),
        ("[THINK]no[/THINK]Yes<|im_end|>", 1.0),
        ("\u25c1think\u25b7no\u25c1/think\u25b7Yes", 1.0),
        ("<|channel|>analysis<|message|>No?<|end|><|start|>assistant<|channel|>final<|message|>Yes<|return|>", 1.0),
        ("no</s>", 0.0),
        ("<thought>yes but it was cut", None),
        ("Yes <|im_end|> No", None),
        ("<think>yes but it was cut", None),
        ("Yes, it was cut </think>", None),
        ("I would not answer Yes.", None),
        ("There is no way to know.", None),
        ("The answer is yes", None),
        ("Yes and no", None),
        ("Yes, but no", None),
        ("Yes. No.", None),
        ("Yes/No", None),
        ("No-one", None),
        ("No 1", None),
        ("", None),
    ],
)
def test_text_is_an_answer_only_where_it_begins_with_one_that_ends_there(text, probability):
    score = score_of_text(text, [" yes", " no"], "Verdict:")
    assert score is NO_ANSWER if probability is None else score == (probability, 1.0)


@pytest.mark.parametrize(
    ("text", "probability"),
    [
        ("A", 1.0),
        ("B. It is more than A", 0.0),
        ("C", 0.5),
        ("Better: A", 1.0),
        ("This is a tie.", None),
        ("Neither is better, both are a waste.", None),
        ("A better message is B.", None),
        ("a", None),
        ("A, B and C are alike", None),
        ("A/B", None),
    ],
)
def test_a_letter_is_no_answer_in_another_case_or_within_a_sentence(text, probability):
    score = score_of_text(text, ["A", "B", "C"], "Better:")
    assert score is NO_ANSWER if probability is None else score == (probability, 1.0)


def test_numbers_as_answers_are_not_found_within_numbers():
    assert score_of_text("1.", ["1", "2"]) == (1.0, 1.0)
    assert score_of_text("1.5", ["1", "2"]) is NO_ANSWER
