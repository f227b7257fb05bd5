"""The fixed pool of the experiment: what it says of its programs is so."""

import json
from collections import Counter

import pytest

from actors.features.minigrid import NAMES
from cluster.design.authors import Pool
from cluster.design.candidates import compiled
from cluster.design.kind import load_kind
from configs.checks import ConfigError
from tests.run_processes import ROOT

POOL = ROOT / "docs" / "results" / "design" / "pool.jsonl"
LINES = [json.loads(line) for line in POOL.read_text().splitlines()]
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")


def is_program(text):
    try:
        return bool(compiled(text, load_kind("eureka"), NAMES, ACTIONS).features)
    except ValueError:
        return False


def test_the_fixed_pool_holds_4_sound_12_misleading_and_8_broken_programs():
    assert Counter(line["kind"] for line in LINES) == {"sound": 4, "misleading": 12, "broken": 8}
    assert Counter(line["why"].split(":")[0] for line in LINES if line["kind"] == "misleading") == {
        "sign error": 4,
        "farmable": 5,
        "constant": 3,
    }
    for line in LINES:
        constant_by_itself = line["why"] == "constant: the feature cancels out"
        assert is_program(line["text"]) == (line["kind"] != "broken") or constant_by_itself, line["why"]


def test_a_pool_is_read_in_its_order_or_in_a_random_one_by_the_seed():
    texts = [line["text"] for line in LINES]
    assert Pool(POOL).texts == texts
    assert Pool(POOL, seed=3).texts == Pool(POOL, seed=3).texts != texts
    assert sorted(Pool(POOL, seed=3).texts) == sorted(texts)
    assert Pool(POOL).write("", dict, 0, 1).text == texts[1]
    assert Pool(POOL).write("", dict, 0, 24) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n \n", r'has no line, wanted at least one {"text": PROGRAM}'),
        ('{"text": "after.x"}\n{"txt": 1}', 'line 2 of .* is not of the form {"text": PROGRAM}: got \'{"txt": 1}\''),
        ("\x1b]0;title\x07", r"got '\\x1b\]0;title\\x07'"),
        ("after.x", "line 1 of .* is not of the form"),
        ("[" * 100_000, "line 1 of .* is not of the form"),
    ],
)
def test_a_file_that_is_no_pool_is_refused_by_its_line(tmp_path, content, message):
    (tmp_path / "pool").write_text(content)
    with pytest.raises(ConfigError, match=message):
        Pool(tmp_path / "pool")
    with pytest.raises(ConfigError, match=r"--programs: .*nothing cannot be read"):
        Pool(tmp_path / "nothing")
