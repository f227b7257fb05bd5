"""Rubrics as versioned YAML files: finding, reading and checking them.

Invariant: a rubric that loads can be asked; an error in one is a one-line message that begins with its name.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Collection, Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

from configs.errors import did_you_mean
from configs.paths import user_path
from configs.yaml_text import TRUTH, kind_of, read_yaml
from llm_server.rubrics.rubric import AboutItem, Calibration, Example, PairRubric, Rubric, item_and_about

STYLES = ("completion", "chat")
SWAPPED = {"first": "second", "second": "first", "tie": "tie"}
FOLDER = resources.files("llm_server").joinpath("rubrics")


def built_in_rubrics() -> list[str]:
    """Names of the rubrics that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


def load_rubric(name_or_path: str) -> Rubric:
    """The built-in rubric of that name, or the rubric in that YAML file; ValueError for any mistake."""
    is_built_in = name_or_path in built_in_rubrics()
    path = FOLDER.joinpath(f"{name_or_path}.yaml") if is_built_in else Path(user_path(name_or_path))
    if not path.is_file() and "/" in name_or_path:
        raise ValueError(f"no rubric '{name_or_path}': there is no such file, seen from the folder {Path.cwd()}")
    if not path.is_file():
        raise ValueError(
            f"no rubric '{name_or_path}'{did_you_mean(name_or_path, built_in_rubrics())}: "
            f"give the path of a YAML file or one of {', '.join(built_in_rubrics())}"
        )
    try:
        return parse_rubric(path.read_text("utf-8"), name_or_path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"rubric '{name_or_path}' cannot be read: {error}") from None


def distinct_rubrics(rubrics: Iterable[Rubric]) -> list[Rubric]:
    """The rubrics of one service, each once. ValueError for none, and where two differ under one id and version, by
    which requests name them."""
    found: dict[tuple[str, str], Rubric] = {}
    for rubric in rubrics:
        if found.setdefault((rubric.id, rubric.version), rubric) != rubric:
            named = f"id {rubric.id!r} and version {rubric.version!r}"
            raise ValueError(f"two different rubrics have the {named}: change the id of one of them")
    if not found:
        raise ValueError("got no rubric, wanted at least one")
    return list(found.values())


@functools.lru_cache(maxsize=64)  # parsing takes a third of a second, and every part of a run loads its rubrics itself
def parse_rubric(text: str, name: str) -> Rubric:
    """The rubric written in `text`; ValueError, beginning with `name`, where a key is unknown, missing or malformed."""
    try:
        content = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"rubric '{name}': {error}") from None
    rubric = read_keys(Rubric, _extended(content, name), name)
    _check(rubric, name)
    return rubric


def _extended(content: Any, name: str) -> Any:
    """The keys of the built-in rubric that `extends` names, if any, overridden by those of `content`."""
    if not isinstance(content, dict) or "extends" not in content:
        return content
    base = content.pop("extends")
    if base not in built_in_rubrics():
        raise ValueError(
            f"rubric '{name}': extends is '{base}'{did_you_mean(str(base), built_in_rubrics())}: use one of"
            f" {', '.join(built_in_rubrics())}"
        )
    return _extended(read_yaml(FOLDER.joinpath(f"{base}.yaml").read_text("utf-8")), base) | content


def _check(rubric: Rubric, name: str) -> None:
    kinds = rubric.positive_kinds + rubric.minor_kinds + rubric.negative_kinds
    words, values = tuple(graded.word for graded in rubric.answers), [graded.value for graded in rubric.answers]
    named = words or kinds
    pair_items = rubric.pairs.items if rubric.pairs else ()
    has_both, has_words = rubric.positive_kinds and rubric.negative_kinds, rubric.positive or rubric.negative
    calibrates, ratio = bool(rubric.calibration.items), rubric.calibration.negatives_per_positive
    problems: dict[str, Any] = {
        f"style is '{rubric.style}'{did_you_mean(rubric.style, STYLES)}: use {' or '.join(STYLES)}": (
            rubric.style not in STYLES
        ),
        "id and version must not be empty": not (rubric.id and rubric.version),
        "graded answers stand in place of positive, negative and kinds: leave one of the two out": words
        and (kinds or has_words),
        f"answers: every value must lie in 0 to 1, got {values}": not all(0 <= value <= 1 for value in values),
        "answers: wanted at least two, of different values": words and len(set(values)) < 2,
        "positive_kinds and negative_kinds go together, in place of positive and negative": kinds
        and (not has_both or has_words),
        **_answer_problems(named or (rubric.positive, rubric.negative)),
        f"every example needs one of the kinds {', '.join(named)}": named
        and any(shown.kind not in named for shown in rubric.examples),
        "an example has a kind, the rubric has none": not named
        and any(shown.kind for shown in rubric.examples + pair_items),
        "an item of pairs has a kind that the rubric lacks": named
        and any(shown.kind and shown.kind not in named for shown in pair_items),
        "kinds need calibration items: without them a model's bias towards each answer is unknown": kinds
        and not calibrates,
        f"calibration: negatives_per_positive must be above 0, not {ratio}": not ratio > 0,
        f"max_item_chars must be at least 1, not {rubric.max_item_chars}": rubric.max_item_chars < 1,
        f"min_answer_mass must lie in 0 to 1, not {rubric.min_answer_mass}": not 0 <= rubric.min_answer_mass <= 1,
        f"threshold must be auto or lie in 0 to 1, not {rubric.threshold}": not 0 <= (rubric.threshold or 0) <= 1,
        "threshold auto needs calibration items": rubric.threshold is None and not calibrates,
        "answer_prefix is for style chat; put it into answer_label": rubric.answer_prefix
        and rubric.style == "completion",
        "about_label and pairs do not go together: pairs are compared by themselves": rubric.about_label
        and rubric.pairs,
    }
    raise_first(problems, name)
    if pairs := rubric.pairs:
        better = [example.better for example in pairs.examples]
        problems = {
            **_answer_problems((pairs.first, pairs.second) + (pairs.tie,) * bool(pairs.tie)),
            f"better is `first`, `second` or `tie`: {better}": not set(better) <= set(SWAPPED),
            "an example is a tie but there is no answer `tie`": not pairs.tie and "tie" in better,
            f"min_answer_mass must lie in 0 to 1, not {pairs.min_answer_mass}": not 0 <= pairs.min_answer_mass <= 1,
            f"tie_margin must lie in 0 to 0.5, not {pairs.tie_margin}": not 0 <= pairs.tie_margin < 0.5,
        }
        raise_first(problems, f"{name}: pairs")
    _check_shown(rubric, name)


def raise_first(problems: dict[str, Any], name: str, what: str = "rubric") -> None:
    """ValueError, which begins with `what` and `name`, for the first problem that there is."""
    for problem, present in problems.items():
        if present:
            raise ValueError(f"{what} '{name}': {problem}")


def _answer_problems(answers: Collection[str]) -> dict[str, bool]:
    """What is wrong with answers that must be distinguishable in what a model says."""
    plain = {"".join(char for char in word if unicodedata.category(char)[0] not in "CZ").casefold() for word in answers}
    shown = ", ".join(map(repr, answers))
    return {
        "an answer is empty": "" in plain,
        f"every answer must differ from the others in more than case and space: {shown}": len(plain) < len(answers),
    }


def _check_shown(rubric: Rubric, name: str) -> None:
    """ValueError where an item that the model is shown is empty, has two answers, or lacks what it is judged about."""

    def refuse(problem: str) -> NoReturn:
        raise ValueError(f"rubric '{name}': {problem}")

    def line(shown: str | AboutItem | Example, what: str) -> str:
        item, about = item_and_about(shown)
        if about and not rubric.about_label:
            refuse(f"{what} '{item}' has an `about`, and the rubric no about_label")
        if rubric.about_label and not about:
            refuse(f"{what} '{item}' has no `about`, which about_label asks for")
        return rubric.shown_text(shown) or refuse(f"{what} {item!r} is empty")

    def answers(what: str, shown: Iterable[tuple[str | AboutItem | Example, str]]) -> dict[str, str]:
        found: dict[str, str] = {}
        for item, answer in shown:
            text = line(item, what).replace("\n", " ")
            if found.setdefault(text, answer) != answer:
                refuse(f"{what} '{text}' has two answers, {found[text]!r} and {answer!r}; leave one of the two out")
        return found

    words = {True: "positive", False: "negative"}
    pair_items = rubric.pairs.items if rubric.pairs else ()
    for example in rubric.examples + pair_items:
        if example.kind and example.positive != (example.kind in rubric.positive_kinds):
            refuse(
                f"example '{example.item}' is {words[example.positive]}, and its kind '{example.kind}' is not; leave"
                " `positive` out"
            )
    examples = answers("example", ((shown, shown.kind or words[shown.positive]) for shown in rubric.examples))
    calibration = [(item, "no") for item in rubric.calibration.items]
    calibration += [(item, "yes") for item in rubric.calibration.positives]
    for item in answers("calibration item", calibration):
        if item in examples:
            refuse(f"calibration item '{item}' is also an example: the bias must be measured on items not shown")
    if rubric.pairs is None:
        return
    answers("item of pairs", ((shown, words[shown.positive]) for shown in pair_items))
    better: dict[tuple[str, str], str] = {}
    for pair in rubric.pairs.examples:
        first, second = line(pair.first, "example of pairs"), line(pair.second, "example of pairs")
        for order, answer in (((first, second), pair.better), ((second, first), SWAPPED[pair.better])):
            if better.setdefault(order, answer) != answer:
                refuse(
                    f"example of pairs '{first}' and '{second}' has two answers, in this order or the other; leave one"
                    " of the two out"
                )


def read_keys(
    kind: type, content: Any, name: str, positive_kinds: Collection[str] = (), *, what: str = "rubric"
) -> Any:
    """The dataclass `kind` from its keys; ValueError, which begins with `what` and `name`, where one is unknown or
    missing or has a value of another type."""
    if not isinstance(content, dict):
        raise ValueError(f"{what} '{name}': wanted keys with values, got {kind_of(content)}")
    values, fields = dict(content), {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ValueError(
                f"{what} '{name}': unknown key '{key}'{did_you_mean(str(key), fields)}; known: {', '.join(fields)}"
            )
    positive_kinds = values.get("positive_kinds", positive_kinds)
    if "kind" in values:
        values.setdefault("positive", str(values["kind"] in positive_kinds))
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [key for key in required if key not in values]:
        raise ValueError(f"{what} '{name}': missing {', '.join(missing)}")
    return kind(
        **{key: _read(fields[key].type, values, key, name, positive_kinds, what) for key in fields if key in values}
    )


def _read_entry(options: tuple[Any, ...], entry: Any, name: str, place: str, kinds: Collection[str], what: str) -> Any:
    """An entry of a list: a text, a dataclass, or either, where keys are known by `about`."""
    if str not in options or (len(options) > 1 and isinstance(entry, dict) and "about" in entry):
        return read_keys(options[-1], entry, name, kinds, what=what)
    if not isinstance(entry, str):
        problem = f"a list of texts (in quotes where YAML would read one otherwise), got {entry!r}"
        raise ValueError(f"{place} must be {problem}")
    return str(entry)


def _read(wanted: Any, values: dict[str, Any], key: str, name: str, kinds: Collection[str], what: str) -> Any:
    """The value of `key` converted to the type of its field; ValueError where that is impossible."""
    value, place, parts = values[key], f"{what} '{name}': {key}", get_args(wanted)
    if get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{place} must be a list, got {value!r}")
        options = get_args(parts[0]) or parts[:1]
        places = (f"{name}: {key.removesuffix('s')} {n}" for n in itertools.count(1))
        return tuple(_read_entry(options, *each, place, kinds, what) for each in zip(value, places, strict=False))
    if wanted in (Calibration, PairRubric | None):
        return read_keys(next(iter(parts), wanted), value, f"{name}: {key}", kinds, what=what)
    if wanted is str and isinstance(value, str):
        return str(value)
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        if wanted is bool:
            return TRUTH[value.strip().lower()]
        if wanted == float | None and value == "auto":
            return None
        if wanted is int or re.fullmatch(r"[-+]?\d+", value):  # an int stays an int: it enters the rubric's hash
            return int(value)
        if wanted is not str and math.isfinite(float(value)):
            return float(value)
    names = {
        str: "text (in quotes where YAML would read it otherwise)",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
    }
    raise ValueError(f"{place} must be {names.get(wanted, 'a number or auto')}, got {value!r}")
