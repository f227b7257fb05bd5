"""What a model wrote becomes an answer of the wanted kind, or nothing."""

import dataclasses
import random

import pytest

from llm_server.writing.answer_text import parsed_answer, until_stop
from llm_server.writing.loading import load_brief

LINES = dataclasses.replace(load_brief("suggest_goals"), max_lines=4, max_line_chars=40)
PROGRAM = dataclasses.replace(load_brief("write_reward"), max_lines=4, max_line_chars=40)
SENTENCE = dataclasses.replace(load_brief("vary_goals"), max_line_chars=40)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" open the door; pick up the key", "open the door\npick up the key"),
        ("1. Open the door\n2) Pick up the key\n(3) wait", "Open the door\nPick up the key\nwait"),
        ("- **open the door**\n* 'wait'\n\u2022 \u201csit\u201d", "open the door\nwait\nsit"),
        ("Goals:\n- open the door", "open the door"),
        ("open the door; Open The Door ;; wait", "open the door\nwait"),
        ("a; b; c; d; e; f", "a\nb\nc\nd"),
        ("<think>first a plan; then</think>open the door</s>", "open the door"),
        ("open\tthe \u200b door\x1b[31m; " + "x" * 41, "open the door [31m"),
        ("- 2. *go* ", "go"),
        ("", None),
        (" ; \n--- ; ...", None),
        ("<think>I should open the door; then", None),
        ("1.\n2.", None),
    ],
)
def test_lines_are_the_entries_of_a_list(text, wanted):
    assert parsed_answer(LINES, text) == wanted


def test_what_the_token_limit_cut_off_is_no_entry():
    assert parsed_answer(LINES, "open the door; pick up the", is_cut=True) == "open the door"
    assert parsed_answer(LINES, "open the", is_cut=True) is None
    assert parsed_answer(SENTENCE, "open the", is_cut=True) is None
    assert parsed_answer(SENTENCE, "open the door\nand then", is_cut=True) == "open the door"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\n open the door\nState: x", "open the door"),
        ('"open the door"', "open the door"),
        ("a; b", "a; b"),
        ("x" * 41, None),
        ("Here is a goal:", None),
        ("", None),
    ],
)
def test_a_sentence_is_the_first_line(text, wanted):
    assert parsed_answer(SENTENCE, text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" after.x - before.x", "after.x - before.x"),
        (" def f():\n    return 1</s>\n", " def f():\n    return 1"),
        ("Here it is:\n```python\ndef f():\n\treturn 1\n```\nIt ...\n```\nx\n```", "def f():\n    return 1"),
        ("<think>x\n```\ny\n```</think>```\nz\n```", "z"),
        ("x\x00\u200by", "x  y"),
        ("```python\ndef f():", None),
        ("a\nb\nc\nd\ne", None),
        ("x" * 41, None),
        ("```\n\n```", None),
        (" \n", None),
    ],
)
def test_a_program_is_the_first_block_of_code_or_the_whole_text(text, wanted):
    assert parsed_answer(PROGRAM, text) == wanted


def test_a_program_that_the_token_limit_cut_off_is_none_unless_its_block_had_ended():
    assert parsed_answer(PROGRAM, "after.x - bef", is_cut=True) is None
    assert parsed_answer(PROGRAM, "```\nafter.x\n```\nThis rew", is_cut=True) == "after.x"


@pytest.mark.parametrize("brief", [LINES, SENTENCE, PROGRAM], ids=lambda brief: brief.answer)
def test_an_answer_is_printable_lines_and_the_answer_of_itself(brief):
    pieces = [
        "- ",
        "1. ",
        "a",
        "Go",
        ":",
        ";",
        "\n",
        "\r",
        "*",
        "'",
        "</s>",
        "<think>",
        "</think>",
        "\u200b",
        "\ud800",
        " ",
    ]
    pieces += ["<|im_end|>", "<|channel|>final<|message|>", "\u2028", "\x00", ".", "(2) "]
    chosen = random.Random(7)
    for _ in range(5_000):
        text = "".join(chosen.choices(pieces, k=chosen.randint(1, 9)))
        if answer := parsed_answer(brief, text, is_cut=chosen.random() < 0.3):
            assert parsed_answer(brief, answer) == answer, repr(text)
            assert all(line.isprintable() and (line.strip() or brief is PROGRAM) for line in answer.split("\n"))


def test_a_text_ends_at_the_first_stop():
    assert until_stop("a b\nc", ["c", "\n"]) == ("a b", True)
    assert until_stop("a b", ["\n"]) == ("a b", False)
    assert until_stop("a b", []) == ("a b", False)
