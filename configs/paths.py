"""Paths as people write them: `~` is their home wherever a setting or a flag names a file or a folder.

Invariant: whatever is a path in a configuration has been through here, so that every process of a run sees the same one.
"""

import argparse
import dataclasses
import operator
import os
from typing import TypeVar

PATH_KEYS = (
    "run_dir",
    "annotator.tls_ca",
    "annotator.tls_cert",
    "annotator.tls_key",
    "annotator.token_file",
    "annotator.rubric",
    "service.model",
    "service.encoder",
    "service.store",
    "service.vllm_python",
    "reward_model.judgements",
)
"""Settings that hold a path, or may hold one in place of a name."""
NAMES = ("annotator.rubric", "service.model", "service.encoder")
"""Those of them that hold a name where there is no slash."""
Section = TypeVar("Section")


def is_path_field(name: str) -> bool:
    """Whether the last part of a setting's key, or a field of `AccessConfig`, holds a path."""
    return name == "tls_client_ca" or any(key.endswith(f".{name}") for key in PATH_KEYS)


def user_path(text: str) -> str:
    """`text` with `~` or `~name` at its beginning replaced by that home; ValueError where there is no such user."""
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(
            f"got '{text}', and {path.split('/')[0]} is nobody's home here: write the path out, or ./{path} for a folder of that name"
        )
    return path


def path_argument(text: str) -> str:
    """`user_path` as the type of a flag of argparse."""
    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def with_user_paths(config: Section) -> Section:
    """A `RunConfig` whose PATH_KEYS are expanded; ValueError, which names the key, where one cannot be."""
    for key in PATH_KEYS:
        value = operator.attrgetter(key)(config)
        if key == "service.model" and operator.attrgetter("service.engine")(config) == "openai":
            continue  # the endpoint's own name of it
        if key in NAMES and "/" not in value:
            continue
        try:
            config = _replaced(config, key.split("."), user_path(value))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    return config


def _replaced(section: Section, names: list[str], value: str) -> Section:
    name, *rest = names
    inner = _replaced(getattr(section, name), rest, value) if rest else value
    return dataclasses.replace(section, **{name: inner})  # type: ignore[type-var]
