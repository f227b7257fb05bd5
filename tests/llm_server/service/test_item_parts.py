"""An item of several messages is asked message by message and judged by its most probable message."""

import dataclasses
import math
from concurrent.futures import Future

import pytest

from llm_server.annotation import Judgement, Status
from llm_server.rubrics.rubric import MAX_PARTS
from llm_server.service.combining import combine_parts, judgement_of_parts

NONE = Judgement(status=Status.UNPARSED, probability=math.nan, answer_mass=0.01)


def label(p, cached=False):
    return Judgement(status=Status.OK, probability=p, answer_mass=0.9, cached=cached)


def test_an_item_is_what_its_likeliest_part_is():
    assert judgement_of_parts([label(0.2), label(0.7), label(0.4)]).probability == 0.7
    assert judgement_of_parts([NONE, label(0.2)]).probability == 0.2
    assert judgement_of_parts([NONE, NONE]).status is Status.UNPARSED


def test_an_item_is_cached_where_all_of_it_was():
    assert judgement_of_parts([label(0.2, cached=True), label(0.7, cached=True)]).cached
    assert not judgement_of_parts([label(0.2, cached=False), label(0.7, cached=True)]).cached


def test_answers_go_to_the_items_whose_parts_they_are():
    answers: Future = Future()
    combined = combine_parts(answers, [[b"a", b"b"], [b"c"], [b"d", b"e"]])
    answers.set_result([label(0.1), label(0.2), label(0.3), label(0.5), label(0.4)])
    assert [judgement.probability for judgement in combined.result(1)] == [0.2, 0.3, 0.5]


def test_withdrawing_a_request_withdraws_its_parts():
    answers: Future = Future()
    assert combine_parts(answers, [[b"a", b"b"]]).cancel()
    assert answers.cancelled()


def test_a_failure_reaches_whoever_asked():
    answers: Future = Future()
    combined = combine_parts(answers, [[b"a", b"b"]])
    answers.set_exception(ArithmeticError("broke"))
    with pytest.raises(ArithmeticError):
        combined.result(1)


def test_messages_are_found_between_two_spaces(rubric):
    parted = dataclasses.replace(rubric, separator="  ")
    assert parted.parts(b"You kill the newt!  It's a wall.  You kill the newt!") == [
        b"You kill the newt!",
        b"It's a wall.",
    ]
    assert parted.parts(b"  ") == [b"  "]
    assert dataclasses.replace(rubric, separator="").parts(b"You kill the newt!  It's a wall.") == [
        b"You kill the newt!  It's a wall."
    ]
    assert parted.parts(b"  ".join(b"%d" % n for n in range(40))) == [b"%d" % n for n in range(40 - MAX_PARTS, 40)]
