"""Reward precision uses labels of captions and of their messages, and reports the share without a label."""

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
def test_a_captions_own_label_overrides_its_messages(text, label):
    assert label_of(text, LABELS) is label


def test_only_labelled_reward_counts():
    metrics = precision_metrics({"You kill the newt!": 6.0, "It's a wall.": 2.0, "a": 1.0, "b": 3.0}, LABELS)
    assert metrics["reward_precision"] == pytest.approx(0.75)
    assert metrics["reward_labelled_fraction"] == pytest.approx(8 / 12)
    assert [row["caption"] for row in metrics["reward_unlabelled"]] == ["b", "a"]


def test_precision_without_labelled_reward_is_none():
    assert precision_metrics({"a": 1.0}, {})["reward_precision"] is None
    assert precision_metrics({}, {})["reward_labelled_fraction"] is None
