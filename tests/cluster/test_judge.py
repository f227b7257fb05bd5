"""Who is shown which credentials."""

from pathlib import Path
from typing import Any

import pytest

from cluster import judge
from cluster.judge import SharedJudge, check_writer
from cluster.plan import plan_run
from cluster.run.directory import RunDirectory
from configs.goal_schema import WriterConfig
from configs.loading import load_config
from llm_server.credentials import NO_CREDENTIALS, ClientCredentials, make_credentials
from llm_server.rubrics.loading import load_rubric

WRITER = "127.0.0.1:7431"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, ClientCredentials]:
    """By address, what a client was made with."""
    seen: dict[str, ClientCredentials] = {}

    def client(address: str, rubric: Any, timeout_s: float, credentials: ClientCredentials, about: str = "") -> None:
        seen[address] = credentials

    monkeypatch.setattr(judge, "AnnotationClient", client)
    return seen


def connect(tmp_path: Path, *overrides: str, **replicas: Any) -> None:
    config = load_config(preset="debug", overrides=[f"run_dir={tmp_path}", *overrides])
    shared = SharedJudge(plan_run(config), RunDirectory(tmp_path), **replicas)
    shared.connect_writer(WRITER, load_rubric("nethack_progress"))()


def test_a_writer_elsewhere_is_not_shown_what_the_run_made_for_its_own_replicas(
    tmp_path: Path, shown: dict[str, ClientCredentials]
) -> None:
    made = make_credentials(tmp_path / "keys")
    connect(tmp_path, replicas=dict, credentials=made)
    assert shown[WRITER] == NO_CREDENTIALS


def test_a_writer_is_shown_what_the_service_at_annotator_address_is_shown(
    tmp_path: Path, shown: dict[str, ClientCredentials]
) -> None:
    made = make_credentials(tmp_path / "keys")
    files = [f"annotator.token_file={made.token}", f"annotator.tls_ca={made.ca}"]
    connect(tmp_path, "annotator.address=127.0.0.1:7430", *files)
    assert shown[WRITER].token == made.token.read_text().strip()
    assert shown[WRITER].ca is not None


def test_no_token_travels_unencrypted_to_a_writer() -> None:
    check_writer(WriterConfig(address="10.0.0.9:1"))
    with pytest.raises(ValueError, match="it would travel unencrypted"):
        check_writer(WriterConfig(address="10.0.0.9:1"), ClientCredentials(token="secret"))
