"""Captions: normalisation, ids, counts per episode, and the protocol that delivers every text to the caption book."""

import json
import random

import numpy as np
import pytest

from actors import captions
from actors.captions import CaptionTracker, caption_id, normalize
from actors.rollout import Acknowledgement

WALL, KILL, EMPTY = b"It's a wall.", b"You kill the newt!", b""
HELLO = b"Hello Agent, welcome to NetHack!"


def acknowledge(sequence_number: int, book_epoch: str = "book") -> Acknowledgement:
    return Acknowledgement(book_epoch=book_epoch, sequence_number=sequence_number)


def observe(tracker: CaptionTracker, *raw: bytes) -> list[tuple[int, int]]:
    ids, counts = tracker.observe(raw)
    assert ids.dtype == np.uint64
    assert counts.dtype == np.int32
    return list(zip(ids.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"You hit it.  You kill it!", "You hit it.  You kill it!"),
        (b"  In what direction?  \t ", "In what direction?"),
        (b"a\x00b\x1b[31mc\nd", "a b [31mc d"),
        (b"one \n\t  two", "one  two"),
        ("user\u202eback\u2066wards\u200b\ufeff".encode(), "user back wards"),
        ("café\u2028\x85ok\u00a0x".encode(), "café  ok x"),
        (b"bad \xff byte", "bad \ufffd byte"),
        (b"\x00\x01 \x7f", ""),
    ],
)
def test_control_and_format_characters_become_spaces_and_runs_collapse(raw: bytes, text: str) -> None:
    assert normalize(raw) == text


def test_normalized_captions_are_short_clean_and_stay_as_they_are() -> None:
    rng = random.Random(0)
    alphabet = [
        " ",
        "  ",
        "a",
        "Z",
        "9",
        "\0",
        "\x1b",
        "é",
        "\u202e",
        "\u200d",
        "界",
        "😀",
        "\t",
        "\u0301",
        "<|im_end|>",
    ]
    for _ in range(500):
        raw = "".join(rng.choices(alphabet, k=rng.randrange(200))).encode()
        text = normalize(raw)
        assert len(text.encode()) <= captions.MAX_CAPTION_BYTES
        assert text == text.strip()
        assert "   " not in text
        assert all(char == " " or char.isprintable() for char in text)
        assert normalize(text.encode()) == text


def test_long_captions_lose_their_head_at_a_character() -> None:
    assert normalize(("é" * 200 + "x").encode()) == "é" * 127 + "x"
    assert normalize(b"y" * 300) == "y" * 256


def test_of_many_messages_the_last_whole_ones_are_kept() -> None:
    prompts, outcome = b"What do you want to use or apply? [ef or ?*]  " * 6, b"You succeed in unlocking the door."
    kept = normalize(prompts + outcome)
    assert kept.split("  ") == ["What do you want to use or apply? [ef or ?*]"] * 4 + [
        "You succeed in unlocking the door."
    ]
    assert normalize(b"lost  " + b"y" * 256) == "y" * 256
    assert normalize(b"lost  " + b"y" * 100 + b"  " + b"z" * 154) == "y" * 100 + "  " + "z" * 154


def test_case_and_digits_are_folded_only_when_asked() -> None:
    raw = b"You have 12 gold pieces and 3 Gems."
    assert normalize(raw) == raw.decode()
    assert normalize(raw, fold_case=True, fold_digits=True) == "you have 0 gold pieces and 0 gems."


def test_ids_are_xxh3_and_only_the_empty_caption_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert caption_id("") == 0
    assert caption_id("You kill the newt!") == 1166501707621441890, "stored captions of earlier runs keep their ids"
    monkeypatch.setattr(captions.xxhash, "xxh3_64_intdigest", lambda raw: 0)
    assert caption_id("a text whose hash is zero") == 1


def test_counts_are_per_environment_and_episode_and_include_the_reset_caption() -> None:
    tracker = CaptionTracker(2)
    wall, kill = caption_id(WALL.decode()), caption_id(KILL.decode())
    assert observe(tracker, WALL, EMPTY) == [(wall, 1), (0, 1)]
    assert observe(tracker, WALL, EMPTY) == [(wall, 2), (0, 2)]
    assert observe(tracker, b" It's a wall.\n", WALL) == [(wall, 3), (wall, 1)]
    assert observe(tracker, KILL, WALL) == [(kill, 1), (wall, 2)]
    tracker.restart(0, WALL)
    assert observe(tracker, WALL, WALL) == [(wall, 2), (wall, 3)]
    assert observe(tracker, KILL, KILL) == [(kill, 1), (kill, 1)]
    _, counts = tracker.report(0)
    assert counts == {wall: 7, kill: 3}, "every step's occurrence is reported, and the empty caption left out"
    assert tracker.report(1)[1] == {}


def test_what_only_a_reset_showed_is_reported_with_its_text_and_as_no_occurrence() -> None:
    tracker = CaptionTracker(1)
    hello = caption_id(HELLO.decode())
    tracker.restart(0, HELLO)
    assert tracker.report(0) == ({hello: HELLO.decode()}, {hello: 0})
    tracker.restart(0, HELLO)
    assert observe(tracker, HELLO) == [(hello, 2)], "within the episode the reset counts"
    assert tracker.report(1) == ({hello: HELLO.decode()}, {hello: 1})


def test_a_text_is_sent_until_acknowledged() -> None:
    tracker = CaptionTracker(1)
    wall, kill = caption_id(WALL.decode()), caption_id(KILL.decode())
    observe(tracker, WALL)
    assert tracker.report(0)[0] == {wall: WALL.decode()}
    observe(tracker, KILL)
    assert tracker.report(1)[0] == {wall: WALL.decode(), kill: KILL.decode()}, "report 0 may have been lost"
    tracker.acknowledge(acknowledge(0))
    assert tracker.report(2)[0] == {kill: KILL.decode()}
    observe(tracker, WALL)
    tracker.acknowledge(acknowledge(2))
    assert tracker.report(3) == ({}, {wall: 1}), "an acknowledged caption travels as its id alone"
    tracker.acknowledge(acknowledge(0))
    assert tracker.report(4)[0] == {}


def test_a_text_seen_after_the_acknowledged_report_is_not_taken_for_safe() -> None:
    tracker = CaptionTracker(1)
    tracker.report(5)
    observe(tracker, KILL)
    tracker.acknowledge(acknowledge(5))
    assert list(tracker.report(6)[0].values()) == [KILL.decode()]


def test_a_new_book_gets_every_text_again() -> None:
    tracker = CaptionTracker(1)
    observe(tracker, WALL)
    tracker.report(0)
    tracker.acknowledge(acknowledge(0))
    observe(tracker, KILL)
    tracker.report(1)
    tracker.acknowledge(acknowledge(1, "another"))
    assert set(tracker.report(2)[0].values()) == {WALL.decode(), KILL.decode()}
    tracker.acknowledge(acknowledge(1, "another"))
    assert len(tracker.report(3)[0]) == 2, "what the new book took in before it was known to be new does not count"
    tracker.acknowledge(acknowledge(3, "another"))
    assert tracker.report(4)[0] == {}


def test_texts_are_bounded_and_a_forgotten_one_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "MAX_TEXTS", 10)
    monkeypatch.setattr(captions, "MAX_RAW", 4)
    monkeypatch.setattr(captions, "MAX_EPISODE_CAPTIONS", 6)
    tracker = CaptionTracker(1)
    for n in range(200):
        observe(tracker, b"caption %d" % n)
        texts, counts = tracker.report(n)
        assert len(texts) <= 10
        assert counts == {caption_id(f"caption {n}"): 1}
    tracker.acknowledge(acknowledge(199))
    state = tracker.state_dict()
    assert len(state["texts"]) == 10
    assert len(state["episode_ids"]) == 6
    assert observe(tracker, b"caption 199")[0][1] == 2
    assert observe(tracker, b"caption 0")[0][1] == 1
    assert list(tracker.report(200)[0].values()) == ["caption 0"]


def test_a_restored_tracker_counts_and_reports_as_the_saved_one() -> None:
    rng = random.Random(3)
    tracker = CaptionTracker(3)

    def play(*trackers: CaptionTracker) -> None:
        for _ in range(20):
            raw = [b"line %d" % rng.randrange(12) for _ in range(3)]
            first, *others = [observe(each, *raw) for each in trackers]
            assert all(other == first for other in others)
            if rng.random() < 0.2:
                for each in trackers:
                    each.restart(1, raw[0])

    play(tracker)
    tracker.report(0)
    tracker.acknowledge(acknowledge(0))
    play(tracker)
    state = tracker.state_dict()
    values = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    restored = CaptionTracker(3)
    restored.load_state_dict({**json.loads(json.dumps(values)), **arrays})
    play(tracker, restored)
    assert restored.report(1) == tracker.report(1)
    with pytest.raises(ValueError, match="3 environments, this tracker has 2"):
        CaptionTracker(2).load_state_dict(state)
