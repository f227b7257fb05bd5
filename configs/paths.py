"""User paths: `~` is expanded to the home directory wherever a setting or a flag names a file or a folder.

Invariant: every path in a configuration is expanded here, so that all processes of a run use the same one.
"""

import argparse
import operator
import os
import re
from dataclasses import replace
from pathlib import Path

from configs.checks import ConfigError
from configs.errors import one_line
from configs.fields import with_value
from configs.reward_schema import TermConfig
from configs.schema import RunConfig

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
    "service.script_writings",
    "service.vllm_python",
    "reward_model.judgements",
    "goals.rubric",
    "goals.sensible_rubric",
)
"""Settings that hold a path, or may hold one in place of a name."""
NAMES = ("annotator.rubric", "service.model", "service.encoder", "goals.rubric", "goals.sensible_rubric")
"""The PATH_KEYS whose value is a name if it contains no slash."""
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
PROGRAM_SUFFIX = ".py"
VARIABLE = re.compile(r"\$[A-Za-z_]\w*(/|$)|\$\{")


def is_path_field(name: str) -> bool:
    """Whether `name`, the last part of a setting's key or a field of `AccessConfig`, holds a path."""
    return name == "tls_client_ca" or any(key.endswith(f".{name}") for key in PATH_KEYS)


def user_path(text: str) -> str:
    """`text` with a leading `~` or `~name` replaced by that home directory; ValueError if there is no such user, and
    for what would become a folder of an unexpected name: a URL, or a variable that no shell has replaced."""
    if URL.match(text):
        raise ValueError(f"got '{text}', a URL; wanted the path of a file or folder here, or a name")
    if VARIABLE.match(text):
        raise ValueError(
            f"got '{text}', but variables are not replaced: write the path itself,"
            f" or ./{text} for a folder of that name"
        )
    path = os.path.expanduser(text)
    if path.startswith("~"):
        user = path.split("/")[0]
        raise ValueError(
            f"got '{text}', but {user} is no user here: write the full path, or ./{path} for a folder of that name"
        )
    return path


def path_argument(text: str) -> str:
    """`user_path` as the type of an argparse flag."""
    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def with_user_paths(config: RunConfig) -> RunConfig:
    """The configuration with its PATH_KEYS expanded; ConfigError that names the key if one cannot be."""
    for key in PATH_KEYS:
        value = operator.attrgetter(key)(config)
        if key == "service.model" and config.service.engine == "openai":
            continue  # the endpoint's own name for the model
        if key in NAMES and "/" not in value:
            continue
        try:
            config = with_value(config, key, user_path(value))
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from None
    return replace(config, terms={name: _with_user_paths(name, term) for name, term in config.terms.items()})


def _with_user_paths(name: str, term: TermConfig) -> TermConfig:
    """The term with its rubric and the judgement file of its model expanded, and the program that a file holds: the run
    directory then has it, and every machine of a cluster."""

    def expanded(key: str, text: str) -> str:
        try:
            return user_path(text)
        except ValueError as error:
            raise ConfigError(f"terms.{name}.{key}: {error}") from None

    rubric, model = term.rubric, dict(term.model)
    if "/" in rubric:
        rubric = expanded("rubric", rubric)
    if isinstance(judgements := model.get("judgements"), str):
        model["judgements"] = expanded("model.judgements", judgements)
    program = term.program
    if program.endswith(PROGRAM_SUFFIX) and "\n" not in program:
        path = expanded("program", program)
        try:
            program = Path(path).read_text("utf-8-sig")
        except (OSError, ValueError) as error:
            got, wanted = f"got {path!r} ({one_line(error, 200)})", "wanted the file of a program, or its text"
            raise ConfigError(f"terms.{name}.program: {got}, {wanted}") from None
    return replace(term, rubric=rubric, model=model, program=program)
