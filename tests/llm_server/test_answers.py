"""What was said becomes a score: shares among the answers, mass over everything, and no guess where nothing allowed was said."""

import math

import pytest

from llm_server.answers import NO_ANSWER, score_of_answers, score_of_text, score_of_top_tokens


def logs(*probabilities):
    return [math.log(p) for p in probabilities]


def test_the_probability_is_a_share_of_the_answers_and_the_mass_is_theirs_together():
    assert score_of_answers(logs(0.6, 0.2)) == pytest.approx((0.75, 0.8))


def test_a_third_answer_counts_half():
    assert score_of_answers(logs(0.3, 0.1, 0.4)) == pytest.approx((0.5 / 0.8, 0.8))
    assert score_of_text("tie", ["first", "second", "tie"]) == (0.5, 1.0)


def test_numbers_that_broke_are_no_answer():
    assert score_of_answers([math.nan, math.log(0.5)]) is NO_ANSWER
    assert score_of_answers([-9999.0, -9999.0]) is NO_ANSWER
    assert math.isnan(NO_ANSWER.probability)


def test_rounding_gives_no_mass_above_one():
    assert score_of_answers(logs(0.7, 0.3000001)).answer_mass == 1.0


def test_an_unlisted_answer_has_no_more_than_the_least_listed_token_and_than_what_is_left():
    assert score_of_top_tokens([("A", math.log(0.5)), ("x", math.log(0.3))], ["a", "b"]) == pytest.approx((0.5 / 0.7, 0.5))
    assert score_of_top_tokens([("A", math.log(0.5)), ("x", math.log(0.01))], ["a", "b"]) == pytest.approx((0.5 / 0.51, 0.5))
    assert score_of_top_tokens([("x", 0.0)], ["a", "b"]) is NO_ANSWER
    assert score_of_top_tokens([], ["a", "b"]) is NO_ANSWER


def test_a_word_within_a_word_is_no_answer():
    assert score_of_text("Nothing was won", [" yes", " no"]) is NO_ANSWER
    assert score_of_text("no.", [" yes", " no"]) == (0.0, 1.0)
