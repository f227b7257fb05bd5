"""`delphi annotate` and `delphi export`: from a run's captions to a judgement file, asking nothing twice."""

import collections
import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.verbs import audit
from llm_server.annotation import Status
from llm_server.annotator.caption_archive import CaptionArchive
from llm_server.client import InProcessClient, ServiceUnavailable
from llm_server.offline import annotate, caption_file
from llm_server.offline.annotate import sample_pairs
from llm_server.offline.judgement_file import read_judgements
from tests.refusals import assert_refused

RUBRIC = """
id: tiny
version: 1
goal: The player wins something.
style: completion
instructions: Did the player win?
positive: " yes"
negative: " no"
threshold: 0.5
pairs: {instructions: "Which is better?", first: " first", second: " second"}
"""
COUNTS = {f"You kill number {n}!": n + 1 for n in range(40)} | {"A wall.": 500}


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"caption": text, "count": count}) + "\n" for text, count in COUNTS.items()))
    return path


@pytest.fixture
def run(tmp_path: Path, captions: Path):
    (tmp_path / "rubric.yaml").write_text(RUBRIC)

    def run(*flags: str, script: str = "kill=0.9", source: str = "") -> int:
        own = [
            "--rubric",
            str(tmp_path / "rubric.yaml"),
            "--engine",
            "scripted",
            "--script",
            script,
            "--store",
            "memory",
        ]
        return annotate.main([*own, "--out", str(tmp_path / "out.sqlite"), *flags, source or str(captions)])

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):
    """All questions in order; the client fails once `limit` requests have been answered."""
    questions: list[object] = []
    state = {"requests": 0, "limit": math.inf, "pauses": []}

    def watch(name: str) -> None:
        method = getattr(InProcessClient, name)

        def watched(self, items, **settings):
            state["requests"] += 1
            if state["requests"] > state["limit"]:
                raise ServiceUnavailable("the model went away")
            questions.extend(items)
            return method(self, items, **settings)

        monkeypatch.setattr(InProcessClient, name, watched)

    watch("annotate")
    watch("annotate_pairs")
    monkeypatch.setattr(time, "sleep", state["pauses"].append)
    monkeypatch.setattr(annotate, "ITEMS_PER_REQUEST", 16)
    questions_and_state = collections.namedtuple("Asked", "questions state")
    return questions_and_state(questions, state)


def test_the_file_has_every_caption_count_and_pair(run, tmp_path, capsys):
    assert run("--pairs", "30") == 0
    found = read_judgements(tmp_path / "out.sqlite")
    assert {judged.caption.text: found.counts[judged.caption.id] for judged in found.captions} == COUNTS
    assert found.captions[0].caption.text == "A wall."
    assert {round(judged.judgement.probability, 3) for judged in found.captions} == {0.1, 0.9}
    assert (found.threshold, found.provenance.rubric_id, found.provenance.model) == (0.5, "tiny", "scripted")
    assert len(found.pairs) == 30
    for judged in found.pairs:
        first, second = ("kill" in caption.text for caption in (judged.pair.first, judged.pair.second))
        assert (judged.judgement.preference > 0.5) == (first and not second)
        assert judged.judgement.status is Status.OK
    captured = capsys.readouterr()
    assert "41 captions (40 above theta 0.500), 30 pairs, 0 of all without" in captured.out
    assert "captions: 41 of 41" in captured.err


def test_what_was_interrupted_continues_and_nothing_is_asked_twice(run, asked, tmp_path, capsys):
    asked.state["limit"] = 1
    assert run("--pairs", "20") == 1
    error = capsys.readouterr().err
    assert "run the same command again to continue" in error
    assert "the model went away; attempt 4 of 5" in error
    for pause, least in zip(filter(None, asked.state["pauses"]), (2, 4, 8, 16), strict=True):
        assert least <= pause <= least + 1
    assert len(read_judgements(tmp_path / "out.sqlite").captions) == 16
    asked.state["limit"] = 6  # attempts count too: some of these fall into the pairs
    assert run("--pairs", "20") == 1
    asked.state["limit"] = math.inf
    assert run("--pairs", "20") == 0
    assert len(asked.questions) == len(set(asked.questions)) == 41 + 20
    assert run("--pairs", "20") == 0
    assert len(asked.questions) == 61
    found = read_judgements(tmp_path / "out.sqlite")
    assert (len(found.captions), len(found.pairs)) == (41, 20)


def test_more_pairs_and_captions_add_to_what_is_there(run, asked, captions, tmp_path):
    assert run("--pairs", "20") == 0
    before = read_judgements(tmp_path / "out.sqlite")
    with captions.open("a") as file:
        file.write('{"caption": "Something new."}\n')
    assert run("--pairs", "50") == 0
    after = read_judgements(tmp_path / "out.sqlite")
    assert [judged.pair for judged in after.pairs[:20]] == [judged.pair for judged in before.pairs]
    assert (len(after.captions), len(after.pairs)) == (42, 50)
    assert len({frozenset((judged.pair.first.id, judged.pair.second.id)) for judged in after.pairs}) == 50
    assert len(asked.questions) == len(set(asked.questions)) == 42 + 50


def test_pairs_end_where_no_more_exist(run, captions, tmp_path, capsys):
    captions.write_text("".join(json.dumps({"caption": text}) + "\n" for text in "abcd"))
    assert run("--pairs", "100") == 0
    assert len(read_judgements(tmp_path / "out.sqlite").pairs) == 6
    assert "4 captions make no more than 6 pairs" in capsys.readouterr().err


def test_another_rubric_or_model_is_refused(run, tmp_path, capsys):
    assert run() == 0
    before = (tmp_path / "out.sqlite").read_bytes()
    assert run(script="kill=0.8") == 2
    assert "holds answers by rubric 'tiny' version 1" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "rubric.yaml").write_text(RUBRIC.replace("Did the player win?", "Is it gold?"))
    assert run() == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, "seen before anything is loaded"
    assert "give another --out" in error[0]
    assert (tmp_path / "out.sqlite").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--pairs", "-1"], "--pairs: got -1"),
        (["--rubric", "nethack_progres"], "no rubric 'nethack_progres'"),
        (["--engine", "none"], "judges nothing"),
        (["--engine", "transformer"], "did you mean 'transformers'"),
        (["--out", "{here}/absent/out.sqlite"], "there is no folder"),
        (["--out", "{here}"], "is a folder and no judgement file"),
        (["--out", "{here}/captions.jsonl"], "no sound judgement file"),
        (["--store", "/proc/no/such.sqlite"], "judgement store '/proc/no/such.sqlite' cannot be opened"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(run, tmp_path, capsys, flags, complaint):
    code = run(*(flag.replace("{here}", str(tmp_path)) for flag in flags))
    assert_refused(code, capsys.readouterr().err, complaint)


def test_an_empty_file_is_filled(run, tmp_path):
    (tmp_path / "out.sqlite").touch()
    assert run() == 0
    assert len(read_judgements(tmp_path / "out.sqlite").captions) == 41


def test_a_running_service_is_asked_by_its_address(tmp_path, captions, capsys):
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    own = ["--rubric", str(tmp_path / "rubric.yaml")]
    service = [
        sys.executable,
        "-m",
        "llm_server.serve",
        *own,
        "--engine",
        "scripted",
        "--script",
        "kill=0.9",
        "--port",
        "0",
    ]
    with subprocess.Popen([*service, "--store", "memory"], stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split("listening on ")[1].split(",")[0]
            assert "serving" in process.stdout.readline()
            assert (
                annotate.main(
                    [*own, "--address", address, "--pairs", "7", "--out", str(tmp_path / "out.sqlite"), str(captions)]
                )
                == 0
            )
            found = read_judgements(tmp_path / "out.sqlite")
            assert (len(found.captions), len(found.pairs), found.provenance.model) == (41, 7, "scripted")
            labelled = tmp_path / "labelled.jsonl"
            labelled.write_text(
                "".join(json.dumps({"caption": text, "helpful": int("kill" in text)}) + "\n" for text in COUNTS)
            )
            capsys.readouterr()
            assert audit.main([*own, "--address", address, "--json", "--pairs", "5", str(labelled)]) == 0
            report = json.loads(capsys.readouterr().out)
            assert (report["auc"], report["pairs"], report["pair_accuracy"], report["labels_timed"]) == (
                1.0,
                5,
                1.0,
                41,
            )
            assert audit.main([*own, "--address", address, "--json", str(labelled)]) == 0
            assert "pairs" not in json.loads(capsys.readouterr().out), (
                "pairs that were not requested may cost money at an endpoint"
            )
            assert annotate.main(["--address", address, "--out", str(tmp_path / "other.sqlite"), str(captions)]) == 2
            assert "start it with the same --rubric" in capsys.readouterr().err
        finally:
            process.kill()


def test_a_run_is_annotated_directly_and_exported_with_counts(run, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    archive = CaptionArchive(tmp_path / "run" / "captions.sqlite")
    rows = [(n + 1, text, count, 1, 2, 0.9, 0.95, "LABELLED") for n, (text, count) in enumerate(COUNTS.items())]
    archive.write([*rows, (0, "", 10**6, 1, 2, math.nan, math.nan, "WAITING")])
    archive.close()
    assert caption_file.main([str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out
    exported = [json.loads(line) for line in lines.splitlines()]
    assert {row["caption"]: row["count"] for row in exported} == COUNTS
    assert exported[0] == {
        "caption": "A wall.",
        "count": 500,
        "first_seen": 1,
        "last_seen": 2,
        "probability": 0.9,
        "answer_mass": 0.95,
        "status": "LABELLED",
    }
    assert (
        caption_file.main([str(tmp_path / "run" / "captions.sqlite"), "--out", str(tmp_path / "exported.jsonl")]) == 0
    )
    assert (tmp_path / "exported.jsonl").read_text() == lines
    found = []
    for number, source in enumerate(("run", "exported.jsonl")):
        assert run("--out", str(tmp_path / f"{number}.sqlite"), source=str(tmp_path / source)) == 0
        found.append(read_judgements(tmp_path / f"{number}.sqlite"))
    assert found[0] == found[1]
    assert caption_file.main([str(tmp_path / "absent")]) == 2
    assert "no captions.sqlite" in capsys.readouterr().err


def test_pairs_are_drawn_by_the_counts_of_both(monkeypatch):
    monkeypatch.setattr(annotate, "DRAWS_AT_ONCE", 16)
    counts = [1, 2, 4, 8, 16, 32]
    drawn = collections.Counter(frozenset(pair) for seed in range(3000) for pair in sample_pairs(counts, 1, seed))
    total = sum(counts) ** 2 - sum(count**2 for count in counts)
    for (i, j), expected in {(a, b): 2 * counts[a] * counts[b] / total for a in range(6) for b in range(a)}.items():
        assert drawn[frozenset((i, j))] / 3000 == pytest.approx(expected, abs=4 * math.sqrt(expected / 3000) + 1e-9)


def test_all_pairs_are_found_however_rare_their_captions():
    counts = [10**9, 10**9] + [1] * 60
    pairs = sample_pairs(counts, 10**6, seed=0)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 62 * 61 // 2
    assert all(first != second for first, second in pairs)
    assert sample_pairs(counts, 10, 0, taken=[(second, first) for first, second in pairs[:-3]]) != []
    assert sample_pairs([5], 10, 0) == sample_pairs([], 10, 0) == []


def test_an_export_is_utf_8_whatever_the_terminal_shows(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(caption_file, "read_archive", lambda run: [{"caption": "Ünder the → \\"}])
    assert caption_file.main(["run"]) == 0
    assert json.loads(stream.buffer.getvalue().decode()) == {"caption": "Ünder the → \\"}
