"""YAML read as it was typed: what a value is, the setting that it is for decides.

Invariant: no text turns into a number, a date, a truth value or nothing on the way, and no key is given twice unseen.
"""

import re
from typing import Any

import yaml

TRUTH = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
"""Words for true and false, in small letters."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
WHOLE = re.compile(r"[-+]?(0|[1-9]\d*)")


class Plain(str):
    """A value that stood without quotes."""


def read_yaml(text: str) -> Any:
    """Dicts with text for keys, lists, and values as text: `Plain` where it stood without quotes. Nothing at all is `Plain("")`.

    ValueError, in one line, for what is no YAML and for a key that stands twice in one mapping.
    """
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return Plain() if node is None else _value(node)
    except yaml.YAMLError as error:
        raise ValueError(
            f"not YAML: {' '.join(str(error).split())}; text with signs that mean something in YAML goes in quotes"
        ) from None
    except RecursionError:
        raise ValueError("nested too deeply, or within itself") from None


def guess(value: Any) -> Any:
    """`value` with what stands in it without quotes turned into what it looks like: nothing, a truth value, a decimal number, or else text.

    For where no setting says what is wanted. A date, `1:30`, `0x1F`, `007` and `1_000` are text.
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
    has_leading_zero = re.match(r"[-+]?0\d", value)
    return float(value) if NUMBER.fullmatch(value) and not has_leading_zero else str(value)


def _value(node: yaml.Node) -> Any:
    if node.tag not in (
        yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG,
        "tag:yaml.org,2002:seq",
        "tag:yaml.org,2002:map",
    ):
        raise ValueError(f"line {_line(node)} has the tag {node.tag}, and tags are not read; leave it out")
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
            raise ValueError(
                f"key '{key.value}' is given twice, in lines {lines[key.value]} and {_line(key)}; leave one of the two out"
            )
        lines[key.value] = _line(key)
        if key.value == "<<" and key.style is None:
            for base in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                merged |= _value(base)
        else:
            own[key.value] = _value(value)
    return merged | own


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
