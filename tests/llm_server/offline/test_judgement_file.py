"""A judgement file keeps the answers of one rubric and model, and other files are refused with a clear message."""

import contextlib
import dataclasses
import math
import re
import shutil
import sqlite3
import subprocess
import sys

import pytest

from llm_server.annotation import CaptionPair, JudgedCaption, JudgedPair, Judgement, PairJudgement, Status
from llm_server.offline.judgement_file import (
    JudgementFile,
    Judgements,
    Provenance,
    caption_of,
    read_judgements,
    read_provenance,
)
from tests.judgement_files import write_judgements

OURS = Provenance(
    rubric_id="progress",
    rubric_version="1",
    rubric_hash="aa",
    pairs_hash="bb",
    model="m",
    engine="scripted",
    fingerprint="f0f0f0f0f0f0f0",
)
NEWT, WALL, DOOR = (caption_of(text) for text in ("You kill the newt!", "It's a wall.", "The door opens."))
YES = Judgement(status=Status.OK, probability=0.9, answer_mass=0.8, cached=True)
MUMBLE = Judgement(status=Status.UNPARSED, probability=math.nan, answer_mass=0.01, cached=True)
BETTER = PairJudgement(status=Status.OK, preference=0.7, answer_mass=0.6, position_bias=-0.2, cached=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "judgements.sqlite"


def test_what_is_written_is_read(path):
    written = Judgements(
        captions=[JudgedCaption(caption=WALL, judgement=MUMBLE), JudgedCaption(caption=NEWT, judgement=YES)],
        pairs=[JudgedPair(pair=CaptionPair(first=NEWT, second=WALL), judgement=BETTER)],
        counts={NEWT.id: 3, WALL.id: 40},
        threshold=0.4375,
        provenance=OURS,
    )
    write_judgements(path, written)
    found = read_judgements(path)
    assert found.captions[1:] == written.captions[1:], "the most frequent first"
    assert found.captions[0].caption == WALL
    assert found.captions[0].judgement.status is Status.UNPARSED
    assert math.isnan(found.captions[0].judgement.probability)
    assert dataclasses.replace(found, captions=[]) == dataclasses.replace(written, captions=[])
    assert any(caption.id >= 2**63 for caption in (NEWT, WALL, DOOR)), "ids in the upper half are among those tested"


def test_a_file_continues_where_it_stopped(path):
    file = JudgementFile(path, OURS, 0.5)
    file.add_captions({NEWT.text: 1, WALL.text: 9, DOOR.text: 4, "": 100})
    file.write_captions([JudgedCaption(caption=WALL, judgement=YES)])
    file.add_pairs([CaptionPair(first=NEWT, second=WALL), CaptionPair(first=DOOR, second=NEWT)])
    file.write_pairs([JudgedPair(pair=CaptionPair(first=NEWT, second=WALL), judgement=BETTER)])
    file.close()
    file = JudgementFile(path, OURS, 0.5)
    file.add_captions({NEWT.text: 6})
    file.add_pairs([CaptionPair(first=NEWT, second=WALL)])
    assert file.unjudged() == [NEWT, DOOR], "counts are those given last; what is judged stays judged"
    assert file.pairs(unjudged=True) == [CaptionPair(first=DOOR, second=NEWT)]
    assert len(file.pairs()) == 2
    file.close()
    found = read_judgements(path)
    assert len(found.captions) == len(found.pairs) == 1
    assert found.counts == {NEWT.id: 6, WALL.id: 9, DOOR.id: 4}


def test_another_rubric_or_model_is_refused_and_leaves_the_file_alone(path):
    JudgementFile(path, OURS, 0.5).close()
    before = path.read_bytes()
    for change in ({"rubric_hash": "cc"}, {"fingerprint": "other"}, {"pairs_hash": ""}):
        with pytest.raises(ValueError, match=r"holds answers by rubric 'progress' .* give another --out"):
            JudgementFile(path, dataclasses.replace(OURS, **change), 0.5)
    assert path.read_bytes() == before
    assert read_provenance(path) == OURS


def test_a_file_being_written_is_locked_against_other_processes(path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0.0}))
    file = JudgementFile(path, OURS, 0.5)
    for enter in (lambda: JudgementFile(path, OURS, 0.5), lambda: read_judgements(path), lambda: read_provenance(path)):
        with pytest.raises(ValueError, match="is being written: wait until"):
            enter()
    file.close()
    JudgementFile(path, OURS, 0.5).close()


def leave_half_written(path):
    """Kill a process during a transaction that has partly reached the file, which leaves a hot journal."""
    program = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "connection.execute('PRAGMA cache_size=1')\n"
        "insert = 'INSERT INTO captions (id, text, count) VALUES (?, ?, 1)'\n"
        "connection.executemany(insert, ((n, 'x' * 500) for n in range(500)))\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == -9
    assert path.with_name(path.name + "-journal").stat().st_size


def test_what_a_killed_process_left_half_written_is_undone(path, tmp_path, monkeypatch):
    file = JudgementFile(path, OURS, 0.5)
    file.add_captions({NEWT.text: 1})
    file.write_captions([JudgedCaption(caption=NEWT, judgement=YES)])
    file.close()
    leave_half_written(path)
    for copy in ("protected", "reread"):
        shutil.copy(path, tmp_path / copy)
        shutil.copy(f"{path}-journal", tmp_path / f"{copy}-journal")
    found = read_judgements(path)
    assert (found.captions, found.counts) == ([JudgedCaption(caption=NEWT, judgement=YES)], {NEWT.id: 1})
    assert read_provenance(tmp_path / "reread") == OURS
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda name, **settings: connect(name.replace("mode=rw", "mode=ro"), **settings)
    )
    with pytest.raises(ValueError, match=r"left half-written and may not be repaired: make it .* writable"):
        read_judgements(tmp_path / "protected")


def test_an_empty_file_is_used(path):
    path.touch()
    assert read_provenance(path) is None
    JudgementFile(path, OURS, 0.5).close()
    assert read_provenance(path) == OURS


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("UPDATE captions SET id = 1", "id 1 is not that of the text 'You kill the newt!'"),
        ("UPDATE captions SET count = -3", "count of 'You kill the newt!' is -3"),
        ("UPDATE captions SET count = 'many'", "is 'many'"),
        ("UPDATE captions SET probability = 90", "probability of 'You kill the newt!' is 90.0"),
        ("UPDATE captions SET probability = 'high'", "is 'high'"),
        ("UPDATE captions SET probability = NULL", "is None"),
        ("UPDATE captions SET status = 'good'", "'good'"),
        ("UPDATE provenance SET value = 'nan' WHERE name = 'threshold'", "theta is 'nan'"),
        ("UPDATE provenance SET value = 'high' WHERE name = 'threshold'", "theta is 'high'"),
    ],
)
def test_rows_that_were_edited_into_nonsense_are_refused(path, change, problem):
    with contextlib.closing(JudgementFile(path, OURS, 0.5)) as file:
        file.add_captions({NEWT.text: 3})
        file.write_captions([JudgedCaption(caption=NEWT, judgement=YES)])
    assert read_judgements(path).counts == {NEWT.id: 3}
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(change)
    with pytest.raises(ValueError, match=rf"no sound judgement file \(.*{re.escape(problem)}\)") as error:
        read_judgements(path)
    assert "annotate anew" in str(error.value)


def test_what_is_no_judgement_file_is_said_in_one_line(tmp_path, path):
    JudgementFile(path, OURS, 0.5).close()
    whole = path.read_bytes()
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    (tmp_path / "cut").write_bytes(whole[:5000])
    (tmp_path / "garbled").write_bytes(whole[:4096] + b"\xaa" * (len(whole) - 4096))
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE captions (id INTEGER)")
    other.close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version=9")
    newer.close()
    for name, complaint in (
        ("absent", "no judgement file"),
        ("noise", "no sound judgement file"),
        ("cut", "no sound judgement file"),
        ("garbled", "no sound judgement file"),
        ("other", "a database but no judgement file"),
        (path.name, "has format 9"),
        (".", "no judgement file"),
    ):
        with pytest.raises(ValueError, match=complaint) as caught:
            read_judgements(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no sound judgement file"):
        JudgementFile(tmp_path / "noise", OURS, 0.5)
    with pytest.raises(ValueError, match="a database but no judgement file"):
        JudgementFile(tmp_path / "other", OURS, 0.5)
    with pytest.raises(ValueError, match="cannot be opened"):
        JudgementFile(tmp_path / "absent" / "folder" / "x", OURS, 0.5)
    with pytest.raises(ValueError, match="is a folder"):
        JudgementFile(tmp_path, OURS, 0.5)
    assert read_provenance(tmp_path / "absent") is None
