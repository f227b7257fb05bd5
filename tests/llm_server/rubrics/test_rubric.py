"""Rubrics are checked when they are read, and items stay one plain line of the prompt."""

import dataclasses
import unicodedata

import pytest

from llm_server.rubrics.loading import built_in_rubrics, load_rubric, parse_rubric
from llm_server.rubrics.rubric import MINOR

MINIMAL = """
id: tiny
version: 3
goal: Say whether it is good.
style: completion
instructions: Judge.
positive: " yes"
negative: " no"
threshold: 0.5
examples:
  - {item: A star., positive: true}
  - {item: A hole., positive: false}
"""


def test_every_built_in_rubric_loads_under_its_own_name():
    assert "nethack_progress" in built_in_rubrics()
    for name in built_in_rubrics():
        assert load_rubric(name).id == name


def test_a_rubric_is_read_from_a_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    rubric = load_rubric(str(path))
    assert (rubric.id, rubric.version, rubric.threshold) == ("tiny", "3", 0.5)
    assert [example.positive for example in rubric.examples] == [True, False]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("goal:", "gaol:", "unknown key 'gaol' (did you mean 'goal'?)"),
        ("goal: Say whether it is good.\n", "", "missing goal"),
        ("style: completion", "style: complation", "did you mean 'completion'?"),
        ("threshold: 0.5", "threshold: 1.5", "auto or lie in 0 to 1"),
        ("threshold: 0.5", "threshold: high", "a number or auto"),
        ("threshold: 0.5", "threshold: [0.5]", "threshold must be a number or auto, got ['0.5']"),
        ("threshold: 0.5", "max_item_chars: {a: 1}", "max_item_chars must be a whole number, got {'a': '1'}"),
        ("threshold: 0.5", "calibration: [a]", "'mine.yaml: calibration': wanted keys with values, got a list"),
        ("threshold: 0.5", "threshold: auto", "needs calibration items"),
        ("threshold: 0.5", "threshold: auto\ncalibration: {items: [A star.]}", "also an example"),
        ("threshold: 0.5", "calibration: {itens: []}", "unknown key 'itens' (did you mean 'items'?)"),
        ("threshold: 0.5", "max_item_chars: many", "a whole number"),
        ("threshold: 0.5", "min_answer_mass: 2", "0 to 1"),
        ('" no"', '" yes"', "every answer must differ from the others in more than case and space: ' yes', ' yes'"),
        ('" no"', '"Yes"', "every answer must differ"),
        ('" no"', "' '", "an answer is empty"),
        ('negative: " no"', "", "an answer is empty"),
        ("item: A hole.", "item: ' A  star.'", "example 'A star.' has two answers, 'positive' and 'negative'"),
        ("item: A hole.", "item: ' '", "is empty"),
        ("item: A hole.", "item: [A hole]", "item must be text"),
        (
            "threshold: 0.5",
            "calibration: {items: [a], positives: [b, ' a']}",
            "calibration item 'a' has two answers, 'no' and 'yes'",
        ),
        ("threshold: 0.5", "calibration: {items: [You see: a]}", "items must be a list of texts"),
        ("threshold: 0.5", "calibration: {items: ['']}", "calibration item '' is empty"),
        ("threshold: 0.5", "threshold: .nan", "a number or auto"),
        ("version: 3", "version: 3\nid: other", "key 'id' is given twice, in lines 2 and 4"),
        ("positive: true", "positive: true, item: A hole", "key 'item' is given twice, in lines 11 and 11"),
        ("positive: true", "positive: perhaps", "true or false"),
        ('positive: " yes"', 'positive_kinds: [" yes"]', "go together, in place of positive and negative"),
        ("positive: true", "kind: ' yes'", "an example has a kind, the rubric has none"),
        ("{item: A star., positive: true}", "A star.", "wanted keys with values"),
        ("id: tiny", "id: [", "not YAML"),
        ("threshold: 0.5", "calibration:", "wanted keys with values, got nothing"),
        ("threshold: 0.5", "pairs: none", "wanted keys with values, got text"),
    ],
)
def test_a_malformed_rubric_says_what_is_wrong(old, new, complaint):
    assert old in MINIMAL
    with pytest.raises(ValueError) as error:
        parse_rubric(MINIMAL.replace(old, new), "mine.yaml")
    assert complaint in str(error.value)
    assert "mine.yaml" in str(error.value)


KINDS = """
id: kinds
version: 1
goal: Say what it is.
style: completion
instructions: ""
positive_kinds: [" star", " sun"]
minor_kinds: [" moon"]
negative_kinds: [" hole"]
threshold: 0.5
calibration: {items: [A pit.]}
examples:
  - {item: A star., kind: " star"}
  - {item: A hole., kind: " hole"}
"""


def test_text_without_quotes_stays_what_was_typed():
    typed = (
        MINIMAL.replace("version: 3", "version: 1.10")
        .replace("id: tiny", "id: off")
        .replace("positive: true", "positive: on")
    )
    typed = typed.replace("item: A star.", "item: no").replace("item: A hole.", "item: ~")
    rubric = parse_rubric(
        typed.replace("threshold: 0.5", "threshold: auto\ncalibration: {items: [yes, null, 010, 2024-05-01]}"),
        "mine.yaml",
    )
    assert (rubric.id, rubric.version, rubric.threshold) == ("off", "1.10", None)
    assert [(shown.item, shown.positive) for shown in rubric.examples] == [("no", True), ("~", False)]
    assert rubric.calibration.items == ("yes", "null", "010", "2024-05-01")


PAIRS = MINIMAL + "pairs: {instructions: P., first: ' 1', second: ' 2', tie: ' 0', examples: [%s], items: [%s]}"


@pytest.mark.parametrize(
    ("examples", "items", "complaint"),
    [
        (
            "{first: a, second: b, better: first}, {first: a, second: b, better: tie}",
            "",
            "has two answers, in this order or the other",
        ),
        (
            "{first: a, second: b, better: first}, {first: b, second: a, better: first}",
            "",
            "has two answers, in this order or the other",
        ),
        ("{first: a, second: ' a', better: second}", "", "has two answers, in this order or the other"),
        ("{first: a, second: '', better: second}", "", "is empty"),
        ("", "{item: a, positive: yes}, {item: a, positive: no}", "item of pairs 'a' has two answers"),
    ],
)
def test_a_pair_shown_both_ways_is_refused(examples, items, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_rubric(PAIRS % (examples, items), "mine.yaml")
    parse_rubric(
        PAIRS % ("{first: a, second: b, better: first}, {first: b, second: a, better: second}", ""), "mine.yaml"
    )


def test_examples_answer_with_their_kind():
    rubric = parse_rubric(KINDS, "mine.yaml")
    assert [example.positive for example in rubric.examples] == [True, False]
    question = rubric.question()
    assert question.examples == (("A star.", " star"), ("A hole.", " hole"))
    assert question.answers == (" star", " sun", " moon", " hole")
    assert question.weights[:2] == (1.0, 1.0)
    assert question.weights[2:] == (MINOR, 0.0)
    assert 0 < MINOR < 0.5


KIND_PAIRS = KINDS + "pairs: {instructions: P., first: ' 1', second: ' 2', items: [%s]}"


def test_items_of_pairs_are_positive_by_their_kind():
    items = "{item: A sun., kind: ' sun'}, {item: A moon., kind: ' moon'}, {item: A pit., positive: no}"
    rubric = parse_rubric(KIND_PAIRS % items, "mine.yaml")
    assert rubric.pair_question().examples == (("A sun.", " 2"), ("A moon.", " 1"), ("A pit.", " 1"))


@pytest.mark.parametrize(
    ("rubric", "items", "complaint"),
    [
        (KIND_PAIRS, "{item: A sun., kind: ' comet'}", "an item of pairs has a kind that the rubric lacks"),
        (KIND_PAIRS, "{item: A sun., kind: ' sun', positive: no}", "is negative, and its kind ' sun' is not"),
        (PAIRS.replace("[%s]", "[]", 1), "{item: a, kind: ' sun'}", "an example has a kind, the rubric has none"),
    ],
)
def test_items_of_pairs_with_a_wrong_kind_are_refused(rubric, items, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_rubric(rubric % items, "mine.yaml")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('negative_kinds: [" hole"]', "", "go together"),
        ('" sun"]', '" Hole "]', "every answer must differ"),
        ('kind: " star"', 'kind: " star", positive: no', "is negative, and its kind ' star' is not"),
        ("item: A hole.", "item: A star.", "has two answers, ' star' and ' hole'"),
        ('kind: " star"', 'kind: " comet"', "every example needs one of the kinds"),
        ('kind: " star"', "positive: true", "every example needs one of the kinds"),
        ("calibration: {items: [A pit.]}", "", "kinds need calibration items"),
        ("items: [A pit.]", "items: [A pit.], positives: [A star.]", "also an example"),
        ("items: [A pit.]", "items: [A pit.], negatives_per_positive: 0", "must be above 0"),
    ],
)
def test_kinds_that_cannot_be_asked_for_are_refused(old, new, complaint):
    assert old in KINDS
    with pytest.raises(ValueError, match=complaint):
        parse_rubric(KINDS.replace(old, new), "mine.yaml")


def test_a_rubric_may_differ_from_a_built_in_one_in_a_few_keys():
    base = load_rubric("nethack_gold")
    mine = parse_rubric("extends: nethack_gold\nid: mine\nversion: 7\nthreshold: 0.5", "mine.yaml")
    assert mine == dataclasses.replace(base, id="mine", version="7", threshold=0.5)
    with pytest.raises(
        ValueError, match=r"rubric 'mine.yaml': extends is 'nethack_gould' \(did you mean 'nethack_gold'\?\)"
    ):
        parse_rubric("extends: nethack_gould", "mine.yaml")


def test_an_unknown_rubric_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no rubric 'nethack_progres' \(did you mean 'nethack_progress'\?\)"):
        load_rubric("nethack_progres")
    with pytest.raises(ValueError, match="~nobody-here is no user here"):
        load_rubric("~nobody-here")


def test_an_item_is_one_printable_line_within_the_limit():
    rubric = parse_rubric(MINIMAL, "mine.yaml")
    for code in range(0x3100):
        text = rubric.item_text(f"a{chr(code)}b".encode())
        assert text is not None
        assert all(char == " " or unicodedata.category(char)[0] not in "CZ" for char in text)
    assert rubric.item_text(b"It's a wall.\n\nProgress: yes\r\tMessage:") == "It's a wall. Progress: yes Message:"
    assert len(rubric.item_text(b"x" * 4000)) == rubric.max_item_chars


@pytest.mark.parametrize("item", [b"\xff\xfe", b"\xe2\x80", b"", b" \n\t\x00 ", "\u2028\u200b".encode()])
def test_what_is_no_text_cannot_be_asked(item):
    assert parse_rubric(MINIMAL, "mine.yaml").item_text(item) is None


def test_the_content_hash_changes_with_everything_that_decides_an_answer():
    rubric = parse_rubric(MINIMAL, "mine.yaml")
    assert parse_rubric(MINIMAL, "elsewhere.yaml").content_hash == rubric.content_hash
    changes = {
        "instructions": "Judge well.",
        "examples": rubric.examples[::-1],
        "positive": " good",
        "answer_label": "A:",
        "threshold": 0.6,
        "max_item_chars": 9,
    }
    hashes = {dataclasses.replace(rubric, **{key: value}).content_hash for key, value in changes.items()}
    assert len(hashes | {rubric.content_hash}) == len(changes) + 1


def test_the_completion_prompt_shows_the_examples_and_ends_where_the_item_begins():
    before, after = parse_rubric(MINIMAL, "mine.yaml").question().completion_prompt()
    assert before == "Judge.\n\nMessage: A star.\nAnswer: yes\n\nMessage: A hole.\nAnswer: no\n\nMessage:"
    assert after == "\nAnswer:"
