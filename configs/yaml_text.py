"""Reads YAML with scalars as text: the type of a value is decided by the setting that it is for.

Invariant: no text is converted to a number, a date, a truth value or null while reading, and a duplicate key is an
error.
"""

import re
from typing import Any

import yaml

from configs.errors import one_line

TRUTH = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
"""Words for true and false, in lower case."""
NUMBER = re.compile(r"[-+]?(?!0\d)(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
WHOLE = re.compile(r"[-+]?(0|[1-9]\d*)")
TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")


class Plain(str):
    """A value without quotes."""


def read_yaml(text: str) -> Any:
    """Dicts with text keys, lists, and values as text: `Plain` if it had no quotes. An empty document is `Plain("")`.

    ValueError, in one line, for invalid YAML and for duplicate keys in one mapping.
    """
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return Plain() if node is None else _value(node)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {one_line(error)}; text with YAML's special characters goes in quotes") from None
    except RecursionError:
        raise ValueError("nested too deeply, or recursive") from None


def guess(value: Any) -> Any:
    """`value` with unquoted text converted to what it looks like: null, a truth value, a decimal number, or else text.

    For values of which no setting declares the type. A date, `1:30`, `0x1F`, `007` and `1_000` are text.
    """
    if isinstance(value, dict):
        return {key: guess(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [guess(inner) for inner in value]
    if not isinstance(value, Plain):
        return value
    if value.lower() in ("", "~", "null"):
        return None
    if value.lower() in TRUTH:
        return TRUTH[value.lower()]
    if WHOLE.fullmatch(value):
        return int(value)
    return float(value) if NUMBER.fullmatch(value) else str(value)


def _value(node: yaml.Node) -> Any:
    if node.tag not in TAGS:
        raise ValueError(f"line {_line(node)} has the tag {node.tag}, but tags are not supported; remove it")
    if isinstance(node, yaml.ScalarNode):
        return Plain(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    lines: dict[str, int] = {}
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"line {_line(key)}: a key must be text, got a {key.id}")
        if key.value in lines:
            where = f"lines {lines[key.value]} and {_line(key)}"
            raise ValueError(f"key '{key.value}' is given twice, in {where}; remove one of the two")
        lines[key.value] = _line(key)
        if key.value == "<<" and key.style is None:
            for base in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                merged |= _value(base)
        else:
            own[key.value] = _value(value)
    return merged | own


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
