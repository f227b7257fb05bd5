"""Briefs as versioned YAML files in the package: finding, reading and checking them.

Invariant: a brief that loads can be asked; an error in one is a one-line message that begins with its name.
"""

from functools import cache
from importlib import resources

from configs.errors import did_you_mean
from configs.yaml_text import read_yaml
from llm_server.rubrics.loading import raise_first, read_keys
from llm_server.writing.answer_text import PARSERS, parsed_answer
from llm_server.writing.brief import Brief

FOLDER = resources.files("llm_server").joinpath("writing", "briefs")


def built_in_briefs() -> list[str]:
    """Names of the briefs, which are also their ids; every service that writes serves all of them."""
    return sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


@cache
def load_brief(name: str) -> Brief:
    """The brief of that name; ValueError where there is none."""
    if name not in built_in_briefs():
        known = ", ".join(built_in_briefs())
        raise ValueError(f"no brief '{name}'{did_you_mean(name, built_in_briefs())}: use one of {known}")
    return parse_brief(FOLDER.joinpath(f"{name}.yaml").read_text("utf-8"), name)


def parse_brief(text: str, name: str) -> Brief:
    """The brief written in `text`; ValueError, beginning with `name`, where a key is unknown, missing or malformed."""
    try:
        content = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"brief '{name}': {error}") from None
    brief: Brief = read_keys(Brief, content, name, what="brief")
    _check(brief, name)
    return brief


def _check(brief: Brief, name: str) -> None:
    names, fields = [field.name for field in brief.fields], brief.fields
    kinds = " or ".join(PARSERS)
    problems = {
        "id and version must not be empty": not (brief.id and brief.version),
        "wanted at least one field, of which the first is not optional": not fields or fields[0].optional,
        f"every field needs a name and a label of its own, got {names}": len(set(names)) < len(names)
        or not all(field.name and field.label for field in fields),
        f"answer is '{brief.answer}'{did_you_mean(brief.answer, PARSERS)}: use {kinds}": brief.answer not in PARSERS,
        "answer_label must not be empty": not brief.answer_label,
        f"temperature must lie in 0 to 2, not {brief.temperature}": not 0 <= brief.temperature <= 2,
        "max_tokens, and all numbers of lines and characters, must be at least 1": min(
            brief.max_tokens,
            brief.max_lines,
            brief.max_line_chars,
            *(min(field.max_lines, field.max_chars) for field in fields),
        )
        < 1,
    }
    raise_first(problems, name, "brief")
    for number, shown in enumerate(brief.examples, 1):
        place = f"example {number}"
        if len(shown.given) != len(fields):
            raise_first(
                {f"{place} gives {len(shown.given)} fields, wanted {len(fields)}: {', '.join(names)}": True},
                name,
                "brief",
            )
        given = dict(zip(names, map(str.encode, shown.given), strict=True))
        answer = parsed_answer(brief, shown.answer)
        problems = {
            f"{place} leaves out a field that is not optional": brief.text(given) is None,
            f"{place} has an answer that is not of the kind {brief.answer}: {shown.answer!r}": answer is None
            or "\n" in shown.answer,
        }
        raise_first(problems, name, "brief")
