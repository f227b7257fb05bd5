"""The judgement store finds what it was given, under the same judge only, and its errors stop nothing."""

import logging
import math
import sqlite3

import pytest

from llm_server.annotation import Judgement, Status
from llm_server.service import store as store_module
from llm_server.service.store import JudgementStore, open_store

OK = Judgement(status=Status.OK, probability=0.75, answer_mass=0.9)
UNPARSED = Judgement(status=Status.UNPARSED, probability=math.nan, answer_mass=0.01)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "judgements.sqlite"


@pytest.fixture
def store(path):
    store = JudgementStore(path)
    yield store
    store.close()


def test_judgements_survive_a_restart(path):
    first = JudgementStore(path)
    first.put("weights", "rubric", {b"a": OK, b"\xff\x00": UNPARSED})
    first.close()
    second = JudgementStore(path)
    found = second.look_up("weights", "rubric", [b"a", b"\xff\x00", b"other"])
    second.close()
    assert found.keys() == {b"a", b"\xff\x00"}
    assert found[b"a"] == Judgement(status=Status.OK, probability=0.75, answer_mass=0.9, cached=True)
    assert found[b"\xff\x00"].status is Status.UNPARSED
    assert math.isnan(found[b"\xff\x00"].probability)


def test_another_model_or_rubric_finds_nothing(store):
    store.put("weights", "rubric", {b"a": OK})
    assert not store.look_up("other weights", "rubric", [b"a"])
    assert not store.look_up("weights", "other rubric", [b"a"])


def test_many_items_are_looked_up_at_once(store):
    items = [b"%d" % n for n in range(40_000)]  # more than the parameters that SQLite allows in a query
    store.put("weights", "rubric", dict.fromkeys(items, OK))
    assert store.look_up("weights", "rubric", items).keys() == set(items)


def test_two_services_share_one_file(store, path):
    other = JudgementStore(path)
    store.put("weights", "rubric", {b"a": OK})
    other.put("weights", "rubric", {b"b": OK})
    assert other.look_up("weights", "rubric", [b"a"]).keys() == {b"a"}
    assert store.look_up("weights", "rubric", [b"b"]).keys() == {b"b"}
    other.close()


def test_opening_keeps_the_newest(path, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_JUDGEMENTS", 3)
    first = JudgementStore(path)
    first.put("weights", "rubric", {b"%d" % n: OK for n in range(5)})
    first.close()
    second = JudgementStore(path)
    assert second.look_up("weights", "rubric", [b"%d" % n for n in range(5)]).keys() == {b"2", b"3", b"4"}
    second.close()


def test_a_damaged_file_is_moved_aside_with_a_warning(path, caplog):
    path.parent.mkdir()
    path.write_bytes(b"not a database, " * 1000)
    store = JudgementStore(path)
    store.put("weights", "rubric", {b"a": OK})
    assert store.look_up("weights", "rubric", [b"a"])
    store.close()
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes().startswith(b"not a database")
    assert "is damaged" in caplog.text


def test_a_file_that_is_locked_for_good_costs_forward_passes_only(path, monkeypatch, caplog):
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_S", 0.01)
    store = JudgementStore(path)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING):
        store.put("weights", "rubric", {b"a": OK})
    assert "1 judgements are not kept" in caplog.text
    blocker.execute("ROLLBACK")
    blocker.close()
    store.put("weights", "rubric", {b"a": OK})
    assert store.look_up("weights", "rubric", [b"a"])
    store.close()


def test_a_place_where_nothing_can_be_written_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be opened"):
        open_store(str(tmp_path / "file" / "judgements.sqlite"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="cannot be opened"):
        open_store(str(tmp_path / "folder"))


def test_memory_keeps_none():
    assert open_store("memory") is None


def test_the_default_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = open_store("")
    assert store.path == tmp_path / "delphi" / "judgements.sqlite"
    store.close()
