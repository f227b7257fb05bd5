"""Reward is divided by labels of captions and of their messages, and what has none is said."""

import pytest

from llm_server.offline.audit_metrics import label_of, precision_metrics

LABELS = {
    "You kill the newt!": True,
    "It's a wall.": False,
    "The jackal bites!": False,
    "You kill the newt!  You die...": False,
}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("You kill the newt!", True),
        ("You kill the newt!  Who knows?", True),
        ("The jackal bites!  It's a wall.", False),
        ("It's a wall.  Who knows?", None),
        ("You kill the newt!  You die...", False),
    ],
)
def test_a_captions_own_label_goes_before_its_messages(text, label):
    assert label_of(text, LABELS) is label


def test_only_labelled_reward_counts():
    figures = precision_metrics({"You kill the newt!": 6.0, "It's a wall.": 2.0, "a": 1.0, "b": 3.0}, LABELS)
    assert figures["reward_precision"] == pytest.approx(0.75)
    assert figures["reward_labelled_fraction"] == pytest.approx(8 / 12)
    assert [row["caption"] for row in figures["reward_unlabelled"]] == ["b", "a"]


def test_without_labelled_reward_there_is_no_figure():
    assert precision_metrics({"a": 1.0}, {})["reward_precision"] is None
    assert precision_metrics({}, {})["reward_labelled_fraction"] is None
