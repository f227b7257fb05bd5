"""`Rubric`: what the LLM is asked. A versioned YAML file, checked when it is read.

Invariant: an item is put between two fixed pieces of prompt as plain text on one line, so it can change neither the prompt's
structure nor its length beyond the rubric's limit.
"""

import dataclasses
import hashlib
import json
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from configs.suggestions import did_you_mean

STYLES = ("completion", "chat")


@dataclass(frozen=True, kw_only=True)
class Example:
    """An item with its answer, shown to the model before the item that is asked."""

    item: str
    positive: bool


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How theta is found for the model at hand when the rubric says `threshold: auto`.

    Content-free items carry nothing that deserves the positive answer, so what the model gives them is its bias. Theta is
    the most that any of them gets, plus a margin (compare Zhao et al. 2021, "Calibrate Before Use").
    """

    items: tuple[str, ...] = ()
    """Content-free items; none may be an example."""
    margin: float = 0.25
    """Added to their highest log-odds."""


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """Goal, instructions, examples and answers: everything that decides a judgement besides the model."""

    id: str
    """Name by which requests ask for it."""
    version: str
    """Changes whenever the answers may change."""
    goal: str
    """One sentence for people: what a positive answer means."""
    style: str
    """`completion` (one text; right for small models) or `chat` (the model's chat template; right for large instruct models)."""
    instructions: str
    """What the model reads first."""
    positive: str
    """The positive answer as it follows the prompt, its leading space included; one token."""
    negative: str
    """The negative answer, likewise."""
    item_label: str = "Message:"
    """What stands before an item."""
    answer_label: str = "Answer:"
    """What stands before an answer, on a line of its own."""
    examples: tuple[Example, ...] = ()
    """Shown in this order."""
    max_item_chars: int = 256
    """Longer items are cut."""
    min_answer_mass: float = 0.1
    """Below this probability of the two answers together, the model has not answered."""
    threshold: float | None = None
    """Theta: the probability above which an item is positive; None (in YAML `auto`) finds it by `calibration`."""
    calibration: Calibration = field(default_factory=Calibration)

    @cached_property
    def content_hash(self) -> str:
        """Hash of all that can change a judgement or theta: part of the store's key."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def item_text(self, item: bytes) -> str | None:
        """`item` as one printable line within the limit; None where it is not valid UTF-8 or nothing is left of it."""
        try:
            text = item.decode("utf-8")
        except UnicodeDecodeError:
            return None
        return self._one_line(text) or None

    def _one_line(self, text: str) -> str:
        # Categories C* and Z*: control and format characters, surrogates, every kind of space and line separator.
        printable = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
        return " ".join(printable.split())[: self.max_item_chars].rstrip()

    def completion_prompt(self) -> tuple[str, str]:
        """What stands before and after an item in `completion` style; the item follows the first piece after a space."""
        parts = [f"{self.instructions.strip()}\n\n"] if self.instructions.strip() else []
        for example in self.examples:
            parts.append(f"{self.item_label} {self._one_line(example.item)}\n{self.answer_label}{self._answer(example)}\n\n")
        return "".join(parts) + self.item_label, f"\n{self.answer_label}"

    def chat_messages(self, item: str) -> list[dict[str, str]]:
        """The conversation that asks about `item` in `chat` style: instructions, examples as past turns, the question."""
        turns = [{"role": "system", "content": self.instructions.strip()}] if self.instructions.strip() else []
        for example in self.examples:
            turns.append({"role": "user", "content": f"{self.item_label} {self._one_line(example.item)}"})
            turns.append({"role": "assistant", "content": self._answer(example).strip()})
        return [*turns, {"role": "user", "content": f"{self.item_label} {item}"}]

    def _answer(self, example: Example) -> str:
        return self.positive if example.positive else self.negative


def built_in_rubrics() -> list[str]:
    """Names of the rubrics that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_rubric(name_or_path: str) -> Rubric:
    """The built-in rubric of that name, or the rubric in that YAML file; ValueError says what is wrong and what to do."""
    if name_or_path in built_in_rubrics():
        return parse_rubric(_folder().joinpath(f"{name_or_path}.yaml").read_text("utf-8"), name_or_path)
    path = Path(name_or_path)
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
    values = dict(_mapping(content, name))
    values["examples"] = tuple(_example(entry, f"{name}: example {n}") for n, entry in enumerate(_list(values, "examples", name), 1))
    if "calibration" in values:
        calibration = dict(_mapping(values["calibration"], f"{name}: calibration"))
        calibration["items"] = tuple(str(item) for item in _list(calibration, "items", name))
        values["calibration"] = _build(Calibration, calibration, f"{name}: calibration")
    if values.get("threshold") == "auto":
        values["threshold"] = None
    if isinstance(values.get("version"), int):
        values["version"] = str(values["version"])
    rubric = _build(Rubric, values, name)
    _check(rubric, name)
    return rubric


def _check(rubric: Rubric, name: str) -> None:
    problems = {
        f"style is '{rubric.style}'{did_you_mean(rubric.style, STYLES)}: use {' or '.join(STYLES)}": rubric.style not in STYLES,
        "id and version must not be empty": not (rubric.id and rubric.version),
        "positive and negative must be two different answers": rubric.positive == rubric.negative or not rubric.positive.strip(),
        f"max_item_chars must be at least 1, not {rubric.max_item_chars}": rubric.max_item_chars < 1,
        f"min_answer_mass must lie in 0 to 1, not {rubric.min_answer_mass}": not 0 <= rubric.min_answer_mass <= 1,
        f"threshold must be auto or lie in 0 to 1, not {rubric.threshold}": not 0 <= (rubric.threshold or 0) <= 1,
        "threshold auto needs calibration items": rubric.threshold is None and not rubric.calibration.items,
    }
    shown = {example.item for example in rubric.examples}
    for item in rubric.calibration.items:
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


def _example(entry: Any, name: str) -> Example:
    return _build(Example, dict(_mapping(entry, name)), name)


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
