"""Kinds of campaign: what each is by default, and what is refused."""

import pytest

from cluster.design import kind as kinds
from cluster.design.kind import kind_names, load_kind
from configs.checks import ConfigError


def test_the_kinds_are_those_of_the_published_systems():
    sizes = {name: (load_kind(name).rounds, load_kind(name).samples) for name in kind_names()}
    assert sizes == {
        "auto_mc_reward": (4, 4),
        "card": (8, 1),
        "eureka": (5, 16),
        "icpl": (5, 6),
        "progress_counts": (1, 4),
        "text2reward": (1, 1),
    }
    assert all(load_kind(name).id == name for name in sizes)
    assert load_kind("card").gates == kinds.GATES
    assert (load_kind("progress_counts").form, load_kind("progress_counts").pays) == ("progress", "visits")
    assert load_kind("auto_mc_reward").critic
    assert load_kind("auto_mc_reward").analyse
    assert load_kind("icpl").shows_worst


def test_an_unknown_kind_is_refused_with_a_suggestion():
    with pytest.raises(
        ConfigError, match=r"--kind: got 'eurka' \(did you mean 'eureka'\?\), wanted auto_mc_reward, card"
    ):
        load_kind("eurka")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds: got 0, wanted a number from 1 to 1000"),
        ({"select": "scores"}, r"select: got 'scores' \(did you mean 'score'\?\), wanted one of score, ask, judge"),
        ({"pays": "visits"}, "pays: got visits with form: reward, wanted event, or form: progress"),
        ({"gates": ("farm",)}, r"gates: got 'farm' \(did you mean 'farming'\?\), wanted some of static"),
    ],
)
def test_a_kind_with_a_wrong_value_is_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=f"kind 'eureka': {message}"):
        load_kind("eureka", **changes)
