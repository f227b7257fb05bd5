"""Reads YAML with scalars as text: the type of a value is decided by the setting that it is for.

Invariant: no text is converted to a number, a date, a truth value or null while reading, and a duplicate key is an
error.
"""

import math
import re
from typing import Any

import yaml

from configs.errors import one_line

TRUTH = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
"""Words for true and false, in lower case."""
NUMBER = re.compile(r"[-+]?(?!0\d)(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
WHOLE = re.compile(r"[-+]?(0|[1-9]\d*)")
MAX_DIGITS = 4300
"""Python converts no longer text to a whole number."""
HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")


class Plain(str):
    """A value without quotes."""


def read_yaml(text: str) -> Any:
    """Dicts with text keys, lists, and values as text: `Plain` if it had no quotes. An empty document is `Plain("")`.

    ValueError, in one line, for invalid YAML and for duplicate keys in one mapping.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
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
    if WHOLE.fullmatch(value) and len(value) < MAX_DIGITS:
        return int(value)
    return float(value) if NUMBER.fullmatch(value) and math.isfinite(float(value)) else str(value)


def kind_of(value: Any) -> str:
    """What `value` is, in an error message."""
    if isinstance(value, str):
        return "text" if value else "nothing"
    return "a list" if isinstance(value, list) else "keys with values" if isinstance(value, dict) else "nothing"


class _Loader(yaml.BaseLoader):
    """Marks text with the tag !!str as quoted, because it says that it is text."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        is_tagged = self.peek_event().tag is not None
        node = super().compose_scalar_node(anchor)
        node.style = node.style or ("'" if is_tagged else None)
        return node


def _value(node: yaml.Node) -> Any:
    if node.tag not in TAGS:
        raise ValueError(f"line {_line(node)} has the tag {node.tag}, but tags are not supported; remove it")
    if isinstance(node, yaml.ScalarNode):
        return Plain(node.value) if node.style is None else _characters(node)
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
                if not isinstance(base, yaml.MappingNode):
                    raise ValueError(
                        f"line {_line(key)}: << merges keys with values, got a {base.id}; quote it as a key"
                    )
                merged |= _value(base)
        else:
            own[key.value] = _value(value)
    return merged | own


def _characters(node: yaml.ScalarNode) -> str:
    """The text of a quoted scalar; JSON writes a character beyond U+FFFF as two escapes, each a half of it."""
    text = node.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    if HALF_A_CHARACTER.search(text):
        raise ValueError(f"line {_line(node)}: {text!r} has an escape that is half of a character; write the character")
    return text


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
