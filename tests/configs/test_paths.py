"""`~` is the user's home directory, in every setting and flag that may hold a path."""

import argparse
import dataclasses
import operator
import re
from pathlib import Path

import pytest

from configs.annotation_schema import AccessConfig
from configs.checks import ConfigError
from configs.fields import field_docs
from configs.flags import add_flags, flag
from configs.loading import load_config
from configs.paths import NAMES, PATH_KEYS, path_argument, user_path
from configs.schema import RunConfig
from llm_server.rubrics.loading import load_rubric
from llm_server.serve import ACCESS_FLAGS, DEFAULTS, FLAGS
from llm_server.service.store import store_path

NO_PATHS = {
    "env.id",
    "actors.device",
    "annotator.address",
    "service.endpoint",
    "cluster.address",
    "logging.tensorboard",
}
"""Settings whose help mentions files but that hold none."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("key", PATH_KEYS)
def test_a_home_is_written_out_in_every_path(key: str, home: Path) -> None:
    needed = {
        "annotator.tls": ["annotator.address=127.0.0.1:7431"],
        "annotator.tok": ["annotator.address=127.0.0.1:7431"],
    }
    config = load_config(overrides=[f"{key}=~/a/file", *needed.get(key[:13], [])])
    assert operator.attrgetter(key)(config) == f"{home}/a/file"


def test_every_text_setting_that_speaks_of_a_file_or_folder_is_a_path_key() -> None:
    said = re.compile(r"\b(file|folder|directory|path|python of)\b", re.IGNORECASE)
    speaking = {key for key, default, doc in field_docs(RunConfig) if isinstance(default, str) and said.search(doc)}
    assert speaking - NO_PATHS == {*PATH_KEYS, "terms.NAME.rubric", "terms.NAME.program"}


def test_a_home_is_written_out_in_the_paths_of_terms(home: Path) -> None:
    terms = ["terms.x.rubric=~/mine.yaml", "terms.x.model={judgements: ~/file}", "terms.y.rubric=nethack_gold"]
    config = load_config(overrides=terms)
    assert config.terms["x"].rubric == f"{home}/mine.yaml"
    assert config.terms["x"].model == {"judgements": f"{home}/file"}
    assert config.terms["y"].rubric == "nethack_gold"
    with pytest.raises(ConfigError, match=r"terms\.x\.rubric: got '~nobody-here/x'"):
        load_config(overrides=["terms.x.rubric=~nobody-here/x"])


@pytest.mark.parametrize("key", NAMES)
def test_a_name_without_a_slash_stays_what_was_typed(key: str, home: Path) -> None:
    assert operator.attrgetter(key)(load_config(overrides=[f"{key}=~"])) == "~"


def test_an_endpoints_name_of_a_model_is_no_path(home: Path) -> None:
    endpoint = ["service.engine=openai", "service.endpoint=http://127.0.0.1:8000/v1", "service.model=~x/y"]
    assert load_config(overrides=endpoint).service.model == "~x/y"


def test_nobodys_home_is_refused_and_a_folder_of_that_name_can_be_meant(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir: got '~nobody-here/x'.*\./~nobody-here/x"):
        load_config(overrides=["run_dir=~nobody-here/x"])
    assert load_config(overrides=["run_dir=./~nobody-here/x"]).run_dir == "./~nobody-here/x"
    with pytest.raises(argparse.ArgumentTypeError, match="is no user here"):
        path_argument("~nobody-here")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("s3://bucket/runs", "a URL"),
        ("sqlite:///j.sqlite", "a URL"),
        ("$HOME/runs", r"variables are not replaced: .* or \./\$HOME/runs"),
        ("$SCRATCH", "variables are not replaced"),
    ],
)
def test_what_would_become_a_folder_of_an_unexpected_name_is_refused(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"run_dir: got '{re.escape(path)}'.*{said}"):
        load_config(overrides=[f"run_dir={path}"])
    if path.startswith("$"):
        assert user_path(f"./{path}") == f"./{path}"


@pytest.mark.parametrize("path", ["C:/runs", "a$b/c", "$5", "runs/a:b", "$$/x"])
def test_odd_names_are_paths(path: str) -> None:
    assert load_config(overrides=[f"run_dir={path}"]).run_dir == path


def test_a_configuration_file_may_lie_at_home_and_name_it(home: Path) -> None:
    (home / "mine.yaml").write_text("run_dir: ~/runs/mine\n")
    assert load_config(file="~/mine.yaml").run_dir == f"{home}/runs/mine"


def test_flags_of_the_service_expand_what_the_settings_expand(home: Path) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, DEFAULTS, FLAGS)
    add_flags(parser, AccessConfig(), ACCESS_FLAGS)
    texts = [name for name in (*FLAGS, *ACCESS_FLAGS) if isinstance(parser.get_default(name), str)]
    given = vars(parser.parse_args([f"{flag(name)}=~/x" for name in texts]))
    expanding = {name for name in texts if given[name] == f"{home}/x"}
    assert expanding == {
        "model",
        "encoder",
        "store",
        "script_writings",
        "vllm_python",
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "token_file",
    }


def test_parts_used_by_themselves_expand_too(home: Path) -> None:
    assert store_path("~/j.sqlite") == home / "j.sqlite"
    (home / "r.yaml").write_text("extends: nethack_gold\nid: mine\nversion: '1'\n")
    assert load_rubric("~/r.yaml").id == "mine"
    assert user_path("~") == str(home)
    assert user_path("a~b/~") == "a~b/~"


def test_path_keys_are_settings_of_the_schema() -> None:
    assert {key for key in PATH_KEYS if not isinstance(operator.attrgetter(key)(RunConfig()), str)} == set()
    assert dataclasses.is_dataclass(RunConfig)
