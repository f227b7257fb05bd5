"""Keys and what people call them."""

from nle import nethack

from actors.environments.nethack.action_names import key_of, name_of


def test_a_name_stands_for_one_key() -> None:
    keys = {int(action) for action in nethack.ACTIONS}
    names = {key: name_of(key) for key in keys}
    assert {key for key, name in names.items() if key_of(name) != key} == set()
    assert (names[ord("h")], names[ord("H")], names[ord("u")], names[4]) == ("west", "far west", "northeast", "kick")


def test_a_key_without_a_meaning_is_its_character() -> None:
    assert (name_of(ord("{")), name_of(7)) == ("'{'", "key 7")
    assert key_of("no such action") == 0
