"""Declares settings: a default together with its range or choices.

Invariant: a bound is written once, beside its field; the configuration, `delphi serve` and the judge's flags all read
it here.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Iterator
from typing import Any, TypeVar

from configs.errors import did_you_mean

Number = TypeVar("Number", int, float)
Section = TypeVar("Section")
NAME = "NAME"
"""In keys, for a name that the user gives."""


def number(default: Number, low: float, high: float) -> Number:
    """A field whose values lie in [low, high]."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def one_of(default: str, *others: str) -> str:
    """A field whose values are `default` and `others`."""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})


def complaint(field: dataclasses.Field[Any], value: Any) -> str:
    """What is wrong with `value`: `got X, wanted Y`; empty if it is valid."""
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        return f"got {value!r}{did_you_mean(value, choices)}, wanted one of {', '.join(choices)}"
    low, high = field.metadata.get("range", (-math.inf, math.inf))
    if isinstance(value, int | float) and not (math.isfinite(value) and low <= value <= high):
        return f"got {value}, wanted a number from {low:.10g} to {high:.10g}"
    return ""


def settings(section: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], type]]:
    """(dotted key, field, the dataclass that has it) of every setting, in the schema's order. A field with a `section`
    holds any number of sections of that kind, by names that the user gives; in keys, `NAME` stands for these."""
    for field in dataclasses.fields(section):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from settings(field.type, f"{prefix}{field.name}.")
        elif named := field.metadata.get("section"):
            yield from settings(named, f"{prefix}{field.name}.{NAME}.")
        else:
            yield f"{prefix}{field.name}", field, section


def values(section: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(dotted key, field, value) of every setting in a section that exists."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from values(value, f"{prefix}{field.name}.")
        elif "section" in field.metadata:
            for name, inner in value.items():
                yield from values(inner, f"{prefix}{field.name}.{name}.")
        else:
            yield f"{prefix}{field.name}", field, value


def field_docs(section: type) -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, docstring) of every setting, in the schema's order."""
    for key, field, owner in settings(section):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        yield key, default, _docstrings(owner).get(field.name, "")


def with_value(section: Section, key: str, value: Any) -> Section:
    """A copy of a section in which the setting of dotted `key` is `value`."""
    name, _, rest = key.partition(".")
    inner = with_value(getattr(section, name), rest, value) if rest else value
    return dataclasses.replace(section, **{name: inner})  # type: ignore[type-var]


@functools.cache
def _docstrings(section: type) -> dict[str, str]:
    """Field name -> the string literal under it, read from the source because Python keeps none at run time."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for pair in itertools.pairwise(definition.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=doc)):
                docs[name] = " ".join(str(doc).split())
    return docs
