"""From what a model wrote to an answer of the kind that a brief asks for, by a pure function for each kind.

Invariant: an answer is made of printable lines that the model finished; what cannot be parsed is None, and nothing is
repaired by guessing. `parsed_answer` of an answer is that answer. A program is not compiled here: only who asks knows
its features.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

from llm_server.engines.answers import THOUGHTS, TURN_END
from llm_server.rubrics.question import plain_line
from llm_server.writing.brief import Brief

BULLET = re.compile(r"\A(?:[-*\u2022\u2013]|\(?\d{1,3}[.):])(?:\s+|\Z)")
"""What lists begin their entries with."""
ENDING = re.compile(rf"{TURN_END}\Z")
MARKUP = "*_`\"'\u201c\u201d\u2018\u2019"
"""Emphasis and quotes around an entry."""
FENCE = re.compile(r"^[ \t]*```[^`\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
"""A block of code among other text."""
THOUGHT = re.compile(r"<(?:think|thinking|thought|thoughts|reasoning|seed:think)>|\[THINK\]|\u25c1think\u25b7")
"""The beginning of a thought; what follows it is no answer until the thought ends."""


def parsed_answer(brief: Brief, text: str, *, is_cut: bool = False) -> str | None:
    """The answer in `text`, in canonical form; None where there is none. `is_cut`: the token limit ended the text."""
    said = THOUGHTS.sub("", text)
    return None if THOUGHT.search(said) else PARSERS[brief.answer](brief, said, is_cut)


def parsed_lines(brief: Brief, text: str, is_cut: bool) -> str | None:
    """The entries of a list, one per line: without bullets and numbers, each once, at most `max_lines`. An entry that
    the token limit cut off, one that is too long and one that only introduces others (it ends in a colon) is left
    out."""
    pieces = re.split(r"[\n;]", text)
    entries = [_entry(piece) for piece in (pieces[:-1] if is_cut else pieces)]
    found: dict[str, str] = {}
    for entry in filter(partial(_is_fitting, brief), entries):
        found.setdefault(entry.casefold(), entry)
    return "\n".join([*found.values()][: brief.max_lines]) or None


def parsed_sentence(brief: Brief, text: str, is_cut: bool) -> str | None:
    """The first line that holds something; None where it is too long, or the token limit cut it off."""
    first, *rest = text.strip().split("\n")
    entry = _entry(first)
    return entry if _is_fitting(brief, entry) and not (is_cut and not rest) else None


def parsed_program(brief: Brief, text: str, is_cut: bool) -> str | None:
    """The first block of code between fences, or where there is no fence the whole text, with its indentation. None for
    a block without an end, a whole text that the token limit cut off, and more or longer lines than the brief takes."""
    text = "\n".join(_printable(line) for line in text.replace("\r\n", "\n").split("\n"))
    block = FENCE.search(text)
    said, before = block[1] if block else text, ""
    while said != before:
        before, said = said, ENDING.sub("", said.rstrip()).strip("\n")
    if "```" in said or (is_cut and not block):
        return None
    lines = said.split("\n")
    said = said if len(lines) > 1 else said.strip()  # " an expression", as a completion begins
    is_fitting = len(lines) <= brief.max_lines and all(len(line) <= brief.max_line_chars for line in lines)
    return (said or None) if is_fitting else None


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else " " for char in line.expandtabs(4)).rstrip()


PARSERS: dict[str, Callable[[Brief, str, bool], str | None]] = {
    "lines": parsed_lines,
    "sentence": parsed_sentence,
    "program": parsed_program,
}
"""By the kind of answer."""


def _entry(text: str) -> str:
    """The line without what surrounds an entry, however often."""
    line, before = plain_line(text, len(text)), None
    while line != before:
        before, line = line, ENDING.sub("", BULLET.sub("", line).strip(MARKUP)).strip()
    return line


def _is_fitting(brief: Brief, entry: str) -> bool:
    return bool(re.search(r"\w", entry)) and len(entry) <= brief.max_line_chars and not entry.endswith(":")


def until_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the first of `stops`, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
