"""The channel `history`: what an episode's actions mostly were, in words."""

import numpy as np
import pytest

from actors.action_history import ActionHistory

NAMES = ("north", "south", "kick", "look")


def said(actions: list[int]) -> str:
    history = ActionHistory(1, NAMES)
    for action in actions:
        (text,) = history.observe(np.array([action]), slice(0, 1))
    return text.decode()


@pytest.mark.parametrize(
    ("actions", "text"),
    [
        ([0], ""),
        ([0, 0], "often north"),
        ([2, 0, 2, 0], "often north, often kick"),
        ([0] * 4, "often north"),
        ([0] * 5, "mostly north"),
        ([0] * 5 + [1] * 5, "mostly north, mostly south"),
        ([0] * 7 + [2] * 3, "mostly north, often kick"),
        ([0] * 81 + [1] * 19, "mostly north"),
        ([0] * 50 + [1] * 20 + [2] * 15 + [3] * 15, "mostly north, often south"),
    ],
)
def test_shares_are_told_in_words_and_of_ten_actions_at_least(actions: list[int], text: str) -> None:
    assert said(actions) == text


def test_actions_without_a_favourite_are_a_bit_of_everything() -> None:
    history = ActionHistory(1, [f"action {number}" for number in range(20)])
    texts = [history.observe(np.array([t % 20]), slice(0, 1))[0] for t in range(40)]
    assert texts[:9] == [b""] * 9
    assert set(texts[9:]) == {b"a bit of everything"}


def reference(actions: list[int]) -> str:
    share = {name: actions.count(action) / max(len(actions), 10) for action, name in enumerate(NAMES)}
    mostly = [f"mostly {name}" for name in NAMES if share[name] >= 0.5]
    often = [f"often {name}" for name in NAMES if 0.2 <= share[name] < 0.5]
    return ", ".join(mostly + often) or ("a bit of everything" if len(actions) >= 10 else "")


def test_episodes_are_counted_apart_in_parts_and_over_a_saved_state() -> None:
    rng, history = np.random.default_rng(0), ActionHistory(5, NAMES)
    episodes: list[list[int]] = [[] for _ in range(5)]
    for t in range(200):
        for rows in (slice(0, 2), slice(2, 5)):
            actions = rng.choice(4, size=rows.stop - rows.start, p=[0.5, 0.25, 0.2, 0.05])
            texts = history.observe(actions, rows)
            for index, action, text in zip(range(rows.start, rows.stop), actions.tolist(), texts, strict=True):
                episodes[index].append(action)
                assert text.decode() == reference(episodes[index])
        if rng.random() < 0.1:
            history.restart(3)
            episodes[3].clear()
        if t == 100:
            saved, history = history.state_dict(), ActionHistory(5, NAMES)
            history.load_state_dict(saved)
