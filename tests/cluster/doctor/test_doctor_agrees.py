"""`delphi doctor` finds what the run would: it asks as the run asks, looks where the run looks, and creates nothing."""

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import pytest

from cluster.doctor import service as service_checks
from cluster.doctor.machine import check_run_dir
from cluster.doctor.service import check_store
from cluster.doctor.subject import Subject
from cluster.run.directory import open_run
from configs.checks import ConfigError
from configs.loading import load_config
from llm_server.annotation import Judgement, Status
from llm_server.annotator.caption_archive import CaptionArchive
from llm_server.engines import model_check
from llm_server.service.store import open_store
from tests.cluster.examined import examine, quiet_surroundings
from tests.llm_server.fake_endpoint import MODEL as MODEL_THERE
from tests.llm_server.fake_endpoint import FakeEndpoint

MODEL = ("service.engine=transformers",)
LOCAL = ("cluster.mode=local", "service.engine=scripted", "service.store=memory")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_surroundings(tmp_path, monkeypatch)


def test_an_endpoint_is_asked_as_the_run_asks_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = FakeEndpoint()
    settings = ("service.engine=openai", f"service.model={MODEL_THERE}", f"service.endpoint={endpoint.url}")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    try:
        code, results = examine(capsys, *settings)
        assert (code, results["judge"][0]["status"]) == (0, "ok"), "no key is wanted"
        assert "read from logprobs20" in results["judge"][0]["found"]
        code, results = examine(capsys, *settings, "service.model=another")
        assert code == 1
        assert "The model 'another' does not exist" in results["judge"][0]["found"]
        endpoint.key = "right"
        code, results = examine(capsys, *settings)
        assert code == 1
        assert "OPENAI_API_KEY (service.endpoint_key_env) is not set" in results["judge"][0]["found"]
        assert "export OPENAI_API_KEY" in results["judge"][0]["advice"]
    finally:
        endpoint.close()
    monkeypatch.setattr(service_checks, "ANSWER_TIMEOUT_S", 0.5)
    code, results = examine(capsys, *settings)
    assert code == 1
    assert "cannot be reached" in results["judge"][0]["found"]


def test_an_endpoint_behind_a_proxy_is_asked_through_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_checks, "ANSWER_TIMEOUT_S", 0.5)
    proxy = FakeEndpoint()
    proxy.failures.extend([(502, {}, "the proxy cannot reach it")] * 100)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    try:
        settings = (
            "service.engine=openai",
            "service.model=m",
            "service.endpoint=http://192.0.2.77/v1",
            "service.endpoint_key_env=",
        )
        code, results = examine(capsys, *settings)
    finally:
        proxy.close()
    assert code == 1
    assert "the proxy cannot reach it" in results["judge"][0]["found"]
    assert "NO_PROXY" in results["judge"][0]["advice"]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_nothing_is_created_and_the_packaged_model_stays_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    looked_in: list[Path] = []
    facts = model_check._facts
    monkeypatch.setattr(model_check, "_facts", lambda folder, *given: looked_in.append(folder) or facts(folder, *given))
    _, results = examine(capsys, *MODEL, f"run_dir={tmp_path / 'run'}")
    assert results["judge"][0]["status"] == "ok"
    assert len(looked_in) == 1, "once for all checks that ask"
    assert not looked_in[0].exists(), "it was unpacked for the doctor alone"
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize("folder", ["run#1", "a%41", "what?", "[x]", "über", "a b"])
def test_a_store_is_found_whatever_its_folder_is_called(folder: str, tmp_path: Path) -> None:
    store = tmp_path / folder / "j.sqlite"
    subject = Subject(load_config(preset="debug", overrides=["service.engine=scripted"]))
    subject.config = dataclasses.replace(
        subject.config, service=dataclasses.replace(subject.config.service, store=str(store))
    )
    assert check_store(subject).found == f"{store}, new"
    judgement = Judgement(status=Status.OK, probability=0.5, answer_mass=1.0)
    with contextlib.closing(open_store(str(store))) as opened:
        opened.put("fingerprint", "hash", {b"an item": judgement})
    before = files_below(tmp_path)
    result = check_store(subject)
    assert (result.status, result.found.split(", ")[1]) == ("ok", "1 judgements")
    assert files_below(tmp_path) == before


def test_a_store_that_cannot_be_is_said_beforehand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for store, words in ((tmp_path / "file" / "j.sqlite", "is no folder"), (tmp_path, "is a folder")):
        code, results = examine(capsys, f"service.store={store}")
        assert code == 1
        assert words in results["judgement store"][0]["found"]


def stored_in(store: Path) -> Subject:
    subject = Subject(load_config(preset="debug", overrides=["service.engine=scripted"]))
    service = dataclasses.replace(subject.config.service, store=str(store))
    return Subject(dataclasses.replace(subject.config, service=service))


def test_an_empty_store_and_a_link_to_a_new_one_are_used(tmp_path: Path) -> None:
    (tmp_path / "empty.sqlite").touch()
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "new.sqlite")
    for name, found in (("empty.sqlite", "empty.sqlite, empty"), ("link.sqlite", "new.sqlite, new")):
        result = check_store(stored_in(tmp_path / name))
        assert (result.status, result.found) == ("ok", f"{tmp_path}/{found}")
        with contextlib.closing(open_store(str(tmp_path / name))):
            pass


def test_a_link_to_nowhere_holds_neither_store_nor_run(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent" / "there")
    subject = stored_in(tmp_path / "link")
    subject.config = dataclasses.replace(subject.config, run_dir=str(tmp_path / "link"))
    assert f"there is no folder {tmp_path}/absent" in check_store(subject).found
    with pytest.raises(ValueError, match="cannot be opened"):
        open_store(str(tmp_path / "link"))
    assert check_run_dir(subject).status == "failed"
    with pytest.raises(ConfigError, match="run_dir: cannot write"):
        open_run(subject.config)


def test_a_database_of_another_kind_is_no_store_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "captions.sqlite"
    CaptionArchive(file).close()
    before = file.read_bytes()
    for ask in (lambda: check_store(stored_in(file)), lambda: open_store(str(file))):
        with pytest.raises(ValueError, match="another kind, with the table captions: give another file"):
            ask()
    assert file.read_bytes() == before


def test_a_file_of_judgements_is_looked_into_beforehand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = f"reward_model.judgements={tmp_path / 'absent.sqlite'}"
    code, results = examine(capsys, "reward_model.name=classification", absent)
    assert code == 1
    assert "no judgement file" in results["judge"][0]["found"]


def test_a_device_and_an_encoder_that_the_service_would_not_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    _, results = examine(capsys, *MODEL, "cluster.mode=inline", "service.device=cuda:9")
    assert results["judge"][0]["status"] == "failed"
    assert "service.device: got 'cuda:9'" in results["judge"][0]["found"]
    _, results = examine(capsys, "reward_model.name=embedding", "service.encoder=nobody/has-this-encoder")
    assert results["judge"][0]["status"] == "warning"
    assert "hf download nobody/has-this-encoder" in results["judge"][0]["advice"]


def test_temporary_files_are_looked_for_where_the_run_puts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = examine(capsys, *LOCAL)[1]["temporary files"][0]["found"]
    assert found.startswith(f"{tmp_path}, ")
    assert ("its session goes to /tmp" in found) == (len(str(tmp_path)) > 20)
