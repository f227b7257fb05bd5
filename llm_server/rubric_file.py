"""Rubrics as versioned YAML files: finding, reading and checking them.

Invariant: a rubric that loads can be asked; what is wrong with one is said in a line that begins with its name.
"""

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from configs.suggestions import did_you_mean
from llm_server.rubric import Calibration, Example, PairExample, PairRubric, Rubric

STYLES = ("completion", "chat")
BETTER = ("first", "second", "tie")


def built_in_rubrics() -> list[str]:
    """Names of the rubrics that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_rubric(name_or_path: str) -> Rubric:
    """The built-in rubric of that name, or the rubric in that YAML file; ValueError says what is wrong and what to do."""
    if name_or_path in built_in_rubrics():
        return parse_rubric(_folder().joinpath(f"{name_or_path}.yaml").read_text("utf-8"), name_or_path)
    path = Path(name_or_path).expanduser()
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
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"rubric '{name}' is not valid YAML: {' '.join(str(error).split())}") from None
    values = _extended(_mapping(content, name), name)
    for key in ("positive_kinds", "minor_kinds", "negative_kinds"):
        values[key] = tuple(str(kind) for kind in _list(values, key, name))
    positive = frozenset(values["positive_kinds"])
    entries = enumerate(_list(values, "examples", name), 1)
    values["examples"] = tuple(_example(entry, positive, f"{name}: example {n}") for n, entry in entries)
    if "calibration" in values:
        calibration = dict(_mapping(values["calibration"], f"{name}: calibration"))
        for key in ("items", "positives"):
            calibration[key] = tuple(str(item) for item in _list(calibration, key, name))
        values["calibration"] = _build(Calibration, calibration, f"{name}: calibration")
    if "pairs" in values:
        values["pairs"] = _pair_rubric(_mapping(values["pairs"], f"{name}: pairs"), f"{name}: pairs")
    if values.get("threshold") == "auto":
        values["threshold"] = None
    if isinstance(values.get("version"), int):
        values["version"] = str(values["version"])
    rubric = _build(Rubric, values, name)
    _check(rubric, name)
    return rubric


def _extended(content: dict[str, Any], name: str) -> dict[str, Any]:
    """The keys of the built-in rubric that `extends` names, where there is one, with those of `content` in their place."""
    values = dict(content)
    base = values.pop("extends", None)
    if base is None:
        return values
    if base not in built_in_rubrics():
        raise ValueError(
            f"rubric '{name}': extends is '{base}'{did_you_mean(str(base), built_in_rubrics())}: use one of {', '.join(built_in_rubrics())}"
        )
    return _extended(yaml.safe_load(_folder().joinpath(f"{base}.yaml").read_text("utf-8")), base) | values


def _check(rubric: Rubric, name: str) -> None:
    kinds = rubric.positive_kinds + rubric.minor_kinds + rubric.negative_kinds
    has_kinds = bool(kinds)
    problems = {
        f"style is '{rubric.style}'{did_you_mean(rubric.style, STYLES)}: use {' or '.join(STYLES)}": rubric.style not in STYLES,
        "id and version must not be empty": not (rubric.id and rubric.version),
        "positive and negative must be two different answers": not has_kinds
        and (rubric.positive == rubric.negative or not rubric.positive.strip()),
        "positive_kinds and negative_kinds go together, in place of positive and negative, each answer once": has_kinds
        and (
            not (rubric.positive_kinds and rubric.negative_kinds)
            or bool(rubric.positive or rubric.negative)
            or len(set(kinds)) < len(kinds)
        ),
        f"every example needs one of the kinds {', '.join(kinds)}": has_kinds
        and any(example.kind not in kinds for example in rubric.examples),
        "an example has a kind, the rubric has none": not has_kinds and any(example.kind for example in rubric.examples),
        "kinds need calibration items: without them a model's bias towards each answer is unknown": has_kinds
        and not rubric.calibration.items,
        f"calibration: negatives_per_positive must be above 0, not {rubric.calibration.negatives_per_positive}": not (
            rubric.calibration.negatives_per_positive > 0
        ),
        f"max_item_chars must be at least 1, not {rubric.max_item_chars}": rubric.max_item_chars < 1,
        f"min_answer_mass must lie in 0 to 1, not {rubric.min_answer_mass}": not 0 <= rubric.min_answer_mass <= 1,
        f"threshold must be auto or lie in 0 to 1, not {rubric.threshold}": not 0 <= (rubric.threshold or 0) <= 1,
        "threshold auto needs calibration items": rubric.threshold is None and not rubric.calibration.items,
        "answer_prefix is for style chat; put it into answer_label": bool(rubric.answer_prefix) and rubric.style == "completion",
    }
    shown = {example.item for example in rubric.examples}
    for item in (*rubric.calibration.items, *rubric.calibration.positives):
        problems[f"calibration item '{item}' is also an example: what the model was told says nothing of its bias"] = item in shown
    for problem, present in problems.items():
        if present:
            raise ValueError(f"rubric '{name}': {problem}")


def _build(kind: type, values: dict[str, Any], name: str) -> Any:
    """`kind(**values)` with its keys and the types of its plain values checked first."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ValueError(f"rubric '{name}': unknown key '{key}'{did_you_mean(str(key), fields)}; known: {', '.join(fields)}")
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [key for key in required if key not in values]:
        raise ValueError(f"rubric '{name}': missing {', '.join(missing)}")
    for key, value in values.items():
        if problem := _type_problem(fields[key].type, value):
            raise ValueError(f"rubric '{name}': {key} must be {problem}, got {value!r}")
    return kind(**values)


def _type_problem(wanted: Any, value: Any) -> str:
    """What `value` should have been; empty where it is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is bool:
        return "" if isinstance(value, bool) else "true or false"
    if wanted is int:
        return "" if is_number and isinstance(value, int) else "a whole number"
    if wanted is float:
        return "" if is_number else "a number"
    if wanted == float | None:
        return "" if is_number or value is None else "a number or auto"
    if wanted is str:
        return "" if isinstance(value, str) else "text (in quotes where YAML would read it otherwise)"
    return ""


def _example(entry: Any, positive_kinds: frozenset[str], name: str) -> Example:
    values = dict(_mapping(entry, name))
    if "kind" in values:
        values.setdefault("positive", values["kind"] in positive_kinds)
    return _build(Example, values, name)


def _pair_rubric(content: dict[str, Any], name: str) -> PairRubric:
    values = dict(content)
    entries = enumerate(_list(values, "examples", name), 1)
    values["examples"] = tuple(_build(PairExample, _mapping(entry, f"{name}: example {n}"), f"{name}: example {n}") for n, entry in entries)
    shown = enumerate(_list(values, "items", name), 1)
    values["items"] = tuple(_example(entry, frozenset(), f"{name}: item {n}") for n, entry in shown)
    pairs = _build(PairRubric, values, name)
    words = [word for word in (pairs.first, pairs.second, pairs.tie) if word]
    problems = {
        "first and second must be two different answers": not (pairs.first.strip() and pairs.second.strip())
        or len(set(words)) < len(words),
        f"better is `first`, `second` or `tie`: {[e.better for e in pairs.examples]}": any(e.better not in BETTER for e in pairs.examples),
        "an example is a tie but there is no answer `tie`": not pairs.tie and any(e.better == "tie" for e in pairs.examples),
        f"min_answer_mass must lie in 0 to 1, not {pairs.min_answer_mass}": not 0 <= pairs.min_answer_mass <= 1,
        f"tie_margin must lie in 0 to 0.5, not {pairs.tie_margin}": not 0 <= pairs.tie_margin < 0.5,
    }
    for problem, present in problems.items():
        if present:
            raise ValueError(f"rubric '{name}': {problem}")
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


def _folder() -> Any:
    return resources.files("llm_server").joinpath("rubrics")
