"""Message lines of a step: their order, and that no typed text gets through."""

import pytest

from actors.environments.nethack.messages import MAX_TYPED, MessageLog


def show(log: MessageLog, *lines: bytes, text_prompt: bool = False) -> bytes:
    log.start_step()
    for line in lines:
        log.add(line, text_prompt)
    return log.caption()


def name(log: MessageLog, typed: bytes, prompt: bytes = b"What do you want to name this sword? ") -> None:
    """Type an answer letter by letter, then close the prompt."""
    for length in range(len(typed) + 1):
        assert show(log, prompt + typed[:length], text_prompt=True) == prompt
    show(log, b"")


def test_lines_are_joined_in_order_and_empty_or_lingering_ones_left_out() -> None:
    log = MessageLog()
    assert show(log, b"You fall into a pit!", b"", b"You die...", b"You die...") == b"You fall into a pit!  You die..."
    assert show(log) == b""
    assert show(log, b"Gr\xfc\xdfe!") == "Grüße!".encode()


@pytest.mark.parametrize(
    ("line", "caption"),
    [
        (b"# ", b"#"),
        (b"# b?[HL q", b"#"),
        (b"zzq: unknown extended command.", b"unknown extended command."),
        (b": unknown extended command: x: unknown extended command.", b"unknown extended command."),
        (b"Count: 20421", b"Count:"),
        (b"Search for: tna*Xq", b"Search for:"),
        (b'Replace annotation "xY" q" with? ', b'Replace annotation "***" with? '),
        (b'"Hello, Agent!  Welcome to Ann\'s store!"', b'"Hello, Agent!  Welcome to Ann\'s store!"'),
        (b'You read: "ad aerarium".', b'You read: "ad aerarium".'),
    ],
)
def test_typed_commands_and_counts_are_masked_and_the_games_own_quotes_kept(line: bytes, caption: bytes) -> None:
    assert show(MessageLog(), line) == caption


def test_typed_names_and_engravings_are_masked_for_the_rest_of_the_episode() -> None:
    log = MessageLog()
    name(log, b" Xq#;  zz")
    assert (
        show(log, b"a - a long sword named Xq#; zz (weapon in hand).")
        == b"a - a long sword named *** (weapon in hand)."
    )
    assert show(log, b'You read: "X|# zz".') == b'You read: "***".'
    assert show(log, b"Xq#; zz bites the newt.") == b"*** bites the newt."
    assert (
        show(log, b"What do you want to name this sword named Xq#; zz? Q", text_prompt=True)
        == b"What do you want to name this sword named ***? Q"
    )
    log.start_episode()
    assert show(log, b"a sword named Xq#; zz") == b"a sword named Xq#; zz"


def test_short_typed_names_are_masked_only_where_names_stand() -> None:
    log = MessageLog()
    name(log, b"a")
    assert show(log, b"You see here a potion called a.") == b"You see here a potion called ***."


def test_typed_texts_are_bounded() -> None:
    log = MessageLog()
    for n in range(MAX_TYPED + 1):
        name(log, b"name%03d" % n)
    assert show(log, b"name000 and name001") == b"name000 and ***"
