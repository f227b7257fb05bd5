"""What the scripted engine writes."""

import json

import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.engines.building import build_engine, check_engine
from llm_server.writing.loading import load_brief

SUGGEST = load_brief("suggest_goals")


def rule(brief="suggest_goals", matches="door", texts=("open the door", "wait")):
    return json.dumps({"brief": brief, "matches": matches, "texts": list(texts)})


def scripted(tmp_path, *lines):
    path = tmp_path / "writings.jsonl"
    path.write_text("\n".join(lines))
    return ServiceConfig(engine="scripted", script_writings=str(path))


def test_the_first_line_that_matches_gives_its_texts_in_turn(tmp_path, rubric):
    engine = build_engine(scripted(tmp_path, rule(), "", rule(matches="", texts=["go on"])), rubric)
    assert engine.writes
    assert [written.text for written in engine.write(SUGGEST, "A door.", [1, 1, 1])] == [
        "open the door",
        "wait",
        "open the door",
    ]
    assert [written[:2] for written in engine.write(SUGGEST, "A box.", [1])] == [("go on", 2)]
    assert engine.write(load_brief("vary_goals"), "A door.", [1])[0].text == ""
    assert engine.fingerprint != build_engine(scripted(tmp_path, rule()), rubric).fingerprint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 of '.*' is not of the form"),
        ('["x"]', r"got \[.x"),
        (rule(matches="("), "unterminated subpattern"),
        (rule(brief="sugest_goals"), "no brief 'sugest_goals' .did you mean 'suggest_goals'"),
        (rule(texts=[]), "is not of the form"),
        (rule(texts=[1]), "is not of the form"),
        (rule()[:-1] + ', "more": 1}', "is not of the form"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place_before_anything_is_served(tmp_path, line, message):
    with pytest.raises(ValueError, match=message) as raised:
        check_engine(scripted(tmp_path, rule(), line))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("service.script_writings: line 2 of ")


def test_a_file_that_is_not_there_is_one_line():
    with pytest.raises(ValueError, match=r"service\.script_writings: '/no/such' cannot be read .*: give a file"):
        check_engine(ServiceConfig(engine="scripted", script_writings="/no/such"))
