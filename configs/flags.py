"""Command-line flags made from settings: a flag's name, type, default, help and bounds are those of its field.

Invariant: imports nothing heavy.
"""

import argparse
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from configs.fields import complaint, field_docs
from configs.paths import is_path_field, path_argument

Parser = argparse.ArgumentParser | argparse._ArgumentGroup


def flag(name: str) -> str:
    """The flag of the field `name`."""
    return f"--{name.replace('_', '-')}"


def add_flags(parser: Parser, defaults: Any, names: Iterable[str], *, unset: bool = False) -> None:
    """Add a flag per field `names` of the dataclass `defaults`; with `unset`, a flag that is not given is None."""
    docs = {key: doc for key, _, doc in field_docs(type(defaults))}
    for name in names:
        default = getattr(defaults, name)
        kind = path_argument if is_path_field(name) else type(default)
        shown = f" (default: {default})" if default != "" else ""
        text = f"{docs[name].rstrip('.')}{shown}".replace("%", "%%")
        parser.add_argument(flag(name), type=kind, default=None if unset else default, help=text)


def check_flags(section: type, values: Mapping[str, Any]) -> None:
    """ValueError for the first of `values` (field of `section` -> value) that its field does not allow."""
    for field in dataclasses.fields(section):
        if field.name in values and (wrong := complaint(field, values[field.name])):
            raise ValueError(f"{flag(field.name)}: {wrong}")


def add_configuration(parser: argparse.ArgumentParser, presets: str) -> None:
    """Add `--preset` (with the help text `presets`), `--config` and overrides, which together name a configuration."""
    parser.add_argument("--preset", metavar="NAME", help=presets)
    parser.add_argument(
        "--config", type=path_argument, metavar="FILE", help="a YAML file of differences from the defaults"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of the preset's or the file's settings"
    )
