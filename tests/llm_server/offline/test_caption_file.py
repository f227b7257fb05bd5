"""Caption files: errors name the line, and a run's captions.sqlite is read like any caption file."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from actors.captions import caption_id, normalize
from llm_server.annotator.caption_archive import CaptionArchive
from llm_server.offline.caption_file import (
    is_normalised,
    main,
    read_archive,
    read_counted,
    read_labelled,
    read_probabilities,
)
from llm_server.offline.judgement_file import caption_of


@pytest.fixture
def write(tmp_path: Path):
    def write(*lines: object) -> str:
        path = tmp_path / "captions.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return str(path)

    return write


YES, NO = {"caption": "You kill the newt!", "helpful": 1}, {"caption": "It's a wall.", "helpful": 0}


def test_labelled_captions_come_once_each_in_their_order(write):
    rows = read_labelled(write(YES, "", NO, {"caption": "You win.", "helpful": True}, YES))
    assert [(row.text, row.is_positive) for row in rows] == [
        ("You kill the newt!", True),
        ("It's a wall.", False),
        ("You win.", True),
    ]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([YES, "{broken"], "line 2 is not JSON"),
        ([YES, [1]], "line 2 is list, wanted an object"),
        ([YES, {"caption": "x"}], "line 2 has no 'helpful'"),
        ([YES, {"captoin": "x", "helpful": 1}], "unknown key 'captoin' (did you mean 'caption'?)"),
        ([YES, {"caption": "x", "helpful": 2}], "helpful is 2, wanted 0 or 1"),
        ([YES, {"caption": "  ", "helpful": 0}], "caption is '  ', wanted text"),
        ([YES, {"caption": 7, "helpful": 0}], "caption is 7, wanted text"),
        ([YES, {**YES, "helpful": 0}], "was labelled 1 before"),
        ([YES, '{"caption": "x", "helpful": 1, "helpful": 0}'], "line 2: key 'helpful' is given twice"),
        ([YES, '{"caption": "\\ud83d", "helpful": 0}'], r"line 2: caption '\ud83d' has an escape that is half of"),
        (["["], "line 1 is not JSON: Expecting value at column 2; wanted one JSON object per line"),
        (["caption,helpful"], "wanted one JSON object per line"),
        ([YES], "only captions with helpful = 1"),
        ([YES, {"caption": "x", "value": 0.5}], "line 2: this file has labels `helpful` and `value`"),
        ([{"caption": "x", "value": 0.5, "helpful": 1}], "line 1 has both helpful and value"),
        ([{"caption": "x", "value": 1.5}], "line 1: value is 1.5, wanted a number from 0 to 1"),
        ([{"caption": "x", "value": True}], "line 1: value is True, wanted a number"),
        ([{"caption": "x", "value": 0.5}, {"caption": "x", "value": 0.6}], "was labelled 0.5 before"),
        ([{"caption": "x", "value": 0.5}, {"caption": "y", "value": 0.5}], "only captions with value = 0.5"),
        ([{**YES, "about": " "}], "line 1: about is ' ', wanted text"),
        ([{**YES, "about": "a"}, {**YES, "about": "a", "helpful": 0}], "was labelled 1 before"),
        ([], "no captions"),
    ],
)
def test_what_is_wrong_with_labels_is_one_line_with_its_place(write, lines, complaint):
    with pytest.raises(ValueError) as caught:
        read_labelled(write(*lines))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_caption_has_a_label_for_each_thing_that_it_is_judged_about(write):
    rows = read_labelled(write({**YES, "about": "win a fight"}, {**YES, "about": "find gold", "helpful": 0}))
    assert [(row.about, row.is_positive, row.value) for row in rows] == [
        ("win a fight", True, None),
        ("find gold", False, None),
    ]


def test_graded_labels_are_values(write):
    rows = read_labelled(write(*({"caption": text, "value": value} for text, value in (("a", 0), ("b", 0.5)))))
    assert [(row.text, row.value, row.label, row.is_positive) for row in rows] == [
        ("a", 0.0, 0.0, False),
        ("b", 0.5, 0.5, True),
    ]


def test_an_export_can_be_labelled_and_any_editor_may_write_it(tmp_path):
    exported = {"count": 3, "first_seen": 1, "last_seen": 2, "probability": None, "answer_mass": None, "status": "OK"}
    file = tmp_path / "labelled.jsonl"
    lines = [json.dumps({**row, **exported}) for row in (YES, NO, {"caption": "\U0001f600", "helpful": 0})]
    file.write_text("\r\n".join(lines), "utf-8-sig")  # as Windows' editors do
    assert [row.text for row in read_labelled(str(file))] == [YES["caption"], NO["caption"], "\U0001f600"]
    assert read_counted(str(file)) == {YES["caption"]: 3, NO["caption"]: 3, "\U0001f600": 3}


def test_a_path_that_cannot_be_is_one_line():
    with pytest.raises(ValueError, match="File name too long"):
        read_counted("x" * 300)


def test_a_file_that_cannot_be_read_says_so(tmp_path):
    for name, content, complaint in (("absent", None, "No such file"), ("binary", b"\xff\xfe\x00", "not UTF-8")):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=complaint):
            read_counted(str(tmp_path / name))


def test_counts_default_to_one_and_add_up(write):
    assert read_counted(write({"caption": "a"}, {"caption": "b", "count": 5}, {"caption": "a", "count": 2})) == {
        "a": 3,
        "b": 5,
    }
    assert read_counted(write({"caption": "only a reset showed it", "count": 0})) == {"only a reset showed it": 1}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"caption": "a", "count": -1}, "count is -1"),
        ({"caption": "a", "count": 1.5}, "count is 1.5"),
        ({"caption": "a", "count": 10**20}, f"count is {10**20}, wanted at most"),
        ({"caption": "fine", "count": 2**53}, "for all lines of a caption together"),
        ('{"caption": "a", "count": ' + "9" * 5000 + "}", "line 2 has a number too long"),
        ("[" * 100_000, "brackets too deep"),
        ({"caption": "a\tb"}, "not a caption as training makes them"),
        ({"caption": "a" * 257}, "at most 256 bytes"),
    ],
)
def test_counts_and_captions_that_training_never_has_are_refused(write, row, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_counted(write({"caption": "fine"}, row))


def test_normalised_is_what_workers_make_of_anything():
    rng = np.random.default_rng(0)
    alphabet = list("ab .é\t\n\x00\u200b\u2028\u202e語\xa0") + [" "] * 6
    kept = 0
    for _ in range(2000):
        raw = "".join(rng.choice(alphabet, rng.integers(1, 12)))
        text = normalize(raw.encode())
        if text:
            assert is_normalised(text)
            assert caption_of(text).id == caption_id(text)
        if is_normalised(raw):
            kept += 1
            assert normalize(raw.encode()) == raw
    assert kept > 50
    assert not is_normalised("é" * 129)
    assert is_normalised("é" * 128)


def test_a_runs_captions_are_read_from_its_directory_or_its_file(tmp_path, monkeypatch, capsys):
    archive = CaptionArchive(tmp_path / "captions.sqlite")
    archive.write(
        [
            (2**64 - 1, "You kill the newt!", 3, 10, 90, 0.9, 0.95, "LABELLED"),
            (7, "It's a wall.", 40, 1, 99, math.nan, math.nan, "WAITING"),
        ]
    )
    expected = {"It's a wall.": 40, "You kill the newt!": 3}
    assert list(read_counted(str(tmp_path)).items()) == list(expected.items()), "also while the run has it open"
    archive.close()
    assert read_counted(str(tmp_path / "captions.sqlite")) == expected
    monkeypatch.setattr(os, "access", lambda *_: False)  # another user's folder, in which SQLite can make no log
    assert read_counted(str(tmp_path)) == expected
    assert main([str(tmp_path), "--out", str(tmp_path / "captions.sqlite")]) == 2
    assert "the run's own file, which is kept" in capsys.readouterr().err
    assert read_archive(str(tmp_path))[0] == {
        "caption": "It's a wall.",
        "count": 40,
        "first_seen": 1,
        "last_seen": 99,
        "probability": None,
        "answer_mass": None,
        "status": "WAITING",
    }


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "noise.sqlite").write_bytes(b"noise" * 500)
    for name, complaint in (("folder", "without captions.sqlite"), ("noise.sqlite", "or it is damaged")):
        with pytest.raises(ValueError, match=complaint):
            read_counted(str(tmp_path / name))


def test_probabilities_are_found_by_caption_id(tmp_path: Path) -> None:
    archive = CaptionArchive(tmp_path / "captions.sqlite")
    rows = ((2**64 - 1, "a", 0.25), (7, "b", 0.5), (9, "unasked", math.nan))
    archive.write((number, text, 1, 0, 0, p, 1.0, "OK") for number, text, p in rows)
    archive.close()
    assert read_probabilities(str(tmp_path), [2**64 - 1, 9, 5]) == {2**64 - 1: 0.25}
    with pytest.raises(ValueError, match=r"no captions\.sqlite"):
        read_probabilities(str(tmp_path / "absent"), [7])
