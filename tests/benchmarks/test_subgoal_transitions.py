"""The labelled transitions of KeyRoom: whole, and the game says again what the file says."""

from collections import defaultdict

from llm_server.offline.caption_file import read_labelled
from tests.benchmarks.subgoal_transitions import FILE, NUM_TRANSITIONS, SUBGOALS, transitions


def test_each_transition_is_labelled_for_each_subgoal_and_reaches_at_most_one():
    reached = defaultdict(dict)
    for row in read_labelled(str(FILE)):
        reached[row.text][row.about] = row.is_positive
    assert len(reached) == NUM_TRANSITIONS
    assert all({*verdicts} == {*SUBGOALS} and sum(verdicts.values()) <= 1 for verdicts in reached.values())
    for about in SUBGOALS:
        assert sum(verdicts[about] for verdicts in reached.values()) >= 5


def test_the_game_labels_the_same_steps_alike_again():
    labels = {(row.text, row.about): row.is_positive for row in read_labelled(str(FILE))}
    again = {
        (text, about): reached
        for text, verdicts in transitions(100).items()
        for about, reached in zip(SUBGOALS, verdicts, strict=True)
        if (text, about) in labels
    }
    assert len(again) > 50
    assert sum(again.values()) >= 4, "keys were picked up and doors opened"
    assert again == {key: labels[key] for key in again}
