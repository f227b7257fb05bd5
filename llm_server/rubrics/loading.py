"""Rubrics as versioned YAML files: finding, reading and checking them.

Invariant: a rubric that loads can be asked; an error in one is a one-line message that begins with its name.
"""

import contextlib
import dataclasses
import math
import re
import unicodedata
from collections.abc import Collection, Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from configs.errors import did_you_mean
from configs.yaml_text import TRUTH, read_yaml
from llm_server.rubrics.rubric import Calibration, Example, PairExample, PairRubric, Rubric

STYLES = ("completion", "chat")
SWAPPED = {"first": "second", "second": "first", "tie": "tie"}
FOLDER = resources.files("llm_server").joinpath("rubrics")


def built_in_rubrics() -> list[str]:
    """Names of the rubrics that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


def load_rubric(name_or_path: str) -> Rubric:
    """The built-in rubric of that name, or the rubric in that YAML file; ValueError for any mistake."""
    is_built_in = name_or_path in built_in_rubrics()
    path = FOLDER.joinpath(f"{name_or_path}.yaml") if is_built_in else Path(name_or_path).expanduser()
    if not path.is_file():
        raise ValueError(
            f"no rubric '{name_or_path}'{did_you_mean(name_or_path, built_in_rubrics())}: "
            f"give the path of a YAML file or one of {', '.join(built_in_rubrics())}"
        )
    try:
        return parse_rubric(path.read_text("utf-8"), name_or_path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"rubric '{name_or_path}' cannot be read: {error}") from None


def parse_rubric(text: str, name: str) -> Rubric:
    """The rubric written in `text`; ValueError, beginning with `name`, where a key is unknown, missing or malformed."""
    try:
        content = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"rubric '{name}': {error}") from None
    values = _extended(_mapping(content, name), name)
    for key in ("positive_kinds", "minor_kinds", "negative_kinds"):
        values[key] = _texts(values, key, name)
    positive = frozenset(values["positive_kinds"])
    entries = enumerate(_list(values, "examples", name), 1)
    values["examples"] = tuple(_example(entry, positive, f"{name}: example {n}") for n, entry in entries)
    if "calibration" in values:
        calibration = dict(_mapping(values["calibration"], f"{name}: calibration"))
        for key in ("items", "positives"):
            calibration[key] = _texts(calibration, key, f"{name}: calibration")
        values["calibration"] = _build(Calibration, calibration, f"{name}: calibration")
    if "pairs" in values:
        values["pairs"] = _pair_rubric(_mapping(values["pairs"], f"{name}: pairs"), f"{name}: pairs")
    rubric = _build(Rubric, values, name)
    _check(rubric, name)
    return rubric


def _extended(content: dict[str, Any], name: str) -> dict[str, Any]:
    """The keys of the built-in rubric that `extends` names, if any, overridden by those of `content`."""
    values = dict(content)
    base = values.pop("extends", None)
    if base is None:
        return values
    if base not in built_in_rubrics():
        raise ValueError(
            f"rubric '{name}': extends is '{base}'{did_you_mean(str(base), built_in_rubrics())}: use one of"
            f" {', '.join(built_in_rubrics())}"
        )
    return _extended(read_yaml(FOLDER.joinpath(f"{base}.yaml").read_text("utf-8")), base) | values


def _check(rubric: Rubric, name: str) -> None:
    kinds = rubric.positive_kinds + rubric.minor_kinds + rubric.negative_kinds
    has_kinds = bool(kinds)
    negatives_per_positive, calibrates = rubric.calibration.negatives_per_positive, bool(rubric.calibration.items)
    has_both, has_words = rubric.positive_kinds and rubric.negative_kinds, bool(rubric.positive or rubric.negative)
    style_problem = f"style is '{rubric.style}'{did_you_mean(rubric.style, STYLES)}: use {' or '.join(STYLES)}"
    problems = {
        style_problem: rubric.style not in STYLES,
        "id and version must not be empty": not (rubric.id and rubric.version),
        "positive_kinds and negative_kinds go together, in place of positive and negative": has_kinds
        and (not has_both or has_words),
        **_answer_problems(kinds or (rubric.positive, rubric.negative)),
        f"every example needs one of the kinds {', '.join(kinds)}": has_kinds
        and any(example.kind not in kinds for example in rubric.examples),
        "an example has a kind, the rubric has none": not has_kinds and any(shown.kind for shown in rubric.examples),
        "kinds need calibration items: without them a model's bias towards each answer is unknown": has_kinds
        and not calibrates,
        f"calibration: negatives_per_positive must be above 0, not {negatives_per_positive}": not (
            negatives_per_positive > 0
        ),
        f"max_item_chars must be at least 1, not {rubric.max_item_chars}": rubric.max_item_chars < 1,
        f"min_answer_mass must lie in 0 to 1, not {rubric.min_answer_mass}": not 0 <= rubric.min_answer_mass <= 1,
        f"threshold must be auto or lie in 0 to 1, not {rubric.threshold}": not 0 <= (rubric.threshold or 0) <= 1,
        "threshold auto needs calibration items": rubric.threshold is None and not calibrates,
        "answer_prefix is for style chat; put it into answer_label": bool(rubric.answer_prefix)
        and rubric.style == "completion",
    }
    _raise_first(problems, name)
    _check_shown(rubric, name)


def _raise_first(problems: dict[str, bool], name: str) -> None:
    for problem, present in problems.items():
        if present:
            raise ValueError(f"rubric '{name}': {problem}")


def _answer_problems(answers: Collection[str]) -> dict[str, bool]:
    """What is wrong with answers that must be distinguishable in what a model says."""
    plain = {"".join(char for char in word if unicodedata.category(char)[0] not in "CZ").casefold() for word in answers}
    shown = ", ".join(map(repr, answers))
    return {
        "an answer is empty": "" in plain,
        f"every answer must differ from the others in more than case and space: {shown}": len(plain) < len(answers),
    }


def _check_shown(rubric: Rubric, name: str) -> None:
    """ValueError where an item that the model is shown is empty, or has two answers."""

    def refuse(problem: str) -> NoReturn:
        raise ValueError(f"rubric '{name}': {problem}")

    def line(item: str, what: str) -> str:
        return rubric.item_text(item.encode("utf-8", "surrogatepass")) or refuse(f"{what} {item!r} is empty")

    def answers(what: str, shown: Iterable[tuple[str, str]]) -> dict[str, str]:
        found: dict[str, str] = {}
        for item, answer in shown:
            text = line(item, what)
            if found.setdefault(text, answer) != answer:
                refuse(f"{what} '{text}' has two answers, {found[text]!r} and {answer!r}; leave one of the two out")
        return found

    words = {True: "positive", False: "negative"}
    for example in rubric.examples:
        if example.kind and example.positive != (example.kind in rubric.positive_kinds):
            refuse(
                f"example '{example.item}' is {words[example.positive]}, and its kind '{example.kind}' is not; leave"
                " `positive` out"
            )
    examples = answers("example", ((shown.item, shown.kind or words[shown.positive]) for shown in rubric.examples))
    calibration = [(item, "no") for item in rubric.calibration.items]
    calibration += [(item, "yes") for item in rubric.calibration.positives]
    for item in answers("calibration item", calibration):
        if item in examples:
            refuse(f"calibration item '{item}' is also an example: the bias must be measured on items not shown")
    if rubric.pairs is None:
        return
    answers("item of pairs", ((shown.item, words[shown.positive]) for shown in rubric.pairs.items))
    better: dict[tuple[str, str], str] = {}
    for pair in rubric.pairs.examples:
        first, second = line(pair.first, "example of pairs"), line(pair.second, "example of pairs")
        for order, answer in (((first, second), pair.better), ((second, first), SWAPPED[pair.better])):
            if better.setdefault(order, answer) != answer:
                refuse(
                    f"example of pairs '{first}' and '{second}' has two answers, in this order or the other; leave one"
                    " of the two out"
                )


def _build(kind: type, values: dict[str, Any], name: str) -> Any:
    """`kind(**values)` after a check of its keys and of the types of its scalar values."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ValueError(
                f"rubric '{name}': unknown key '{key}'{did_you_mean(str(key), fields)}; known: {', '.join(fields)}"
            )
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [key for key in required if key not in values]:
        raise ValueError(f"rubric '{name}': missing {', '.join(missing)}")
    return kind(**{key: _read(fields[key].type, value, f"rubric '{name}': {key}") for key, value in values.items()})


def _read(wanted: Any, value: Any, name: str) -> Any:
    """`value` converted to the type of its field; ValueError, beginning with `name`, where that is impossible."""
    if wanted is str:
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text (in quotes where YAML would read it otherwise), got {value!r}")
        return str(value)
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError, KeyError):
        if wanted is bool:
            return TRUTH[value.strip().lower()]
        if wanted == float | None and value == "auto":
            return None
        if wanted is int or re.fullmatch(r"[-+]?\d+", value):  # an int stays an int: it enters the rubric's hash
            return int(value)
        if math.isfinite(float(value)):
            return float(value)
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    raise ValueError(f"{name} must be {kinds.get(wanted, 'a number or auto')}, got {value!r}")


def _example(entry: Any, positive_kinds: frozenset[str], name: str) -> Example:
    values = dict(_mapping(entry, name))
    if "kind" in values:
        values.setdefault("positive", values["kind"] in positive_kinds)
    return _build(Example, values, name)


def _pair_rubric(content: dict[str, Any], name: str) -> PairRubric:
    values = dict(content)
    places = [(f"{name}: example {n}", entry) for n, entry in enumerate(_list(values, "examples", name), 1)]
    values["examples"] = tuple(_build(PairExample, _mapping(entry, place), place) for place, entry in places)
    shown = enumerate(_list(values, "items", name), 1)
    values["items"] = tuple(_example(entry, frozenset(), f"{name}: item {n}") for n, entry in shown)
    pairs = _build(PairRubric, values, name)
    words = [pairs.first, pairs.second] + [pairs.tie] * bool(pairs.tie)
    better = [example.better for example in pairs.examples]
    problems = {
        **_answer_problems(words),
        f"better is `first`, `second` or `tie`: {better}": not set(better) <= set(SWAPPED),
        "an example is a tie but there is no answer `tie`": not pairs.tie and "tie" in better,
        f"min_answer_mass must lie in 0 to 1, not {pairs.min_answer_mass}": not 0 <= pairs.min_answer_mass <= 1,
        f"tie_margin must lie in 0 to 0.5, not {pairs.tie_margin}": not 0 <= pairs.tie_margin < 0.5,
    }
    _raise_first(problems, name)
    return pairs


def _mapping(content: Any, name: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"rubric '{name}': wanted keys with values, got {type(content).__name__}")
    return content


def _list(values: dict[str, Any], key: str, name: str) -> list[Any]:
    content = values.get(key, [])
    if not isinstance(content, list):
        raise ValueError(f"rubric '{name}': {key} must be a list, got {content!r}")
    return content


def _texts(values: dict[str, Any], key: str, name: str) -> tuple[str, ...]:
    content = _list(values, key, name)
    if other := [item for item in content if not isinstance(item, str)]:
        raise ValueError(
            f"rubric '{name}': {key} must be a list of texts (in quotes where YAML would read one otherwise), got"
            f" {other[0]!r}"
        )
    return tuple(str(item) for item in content)
