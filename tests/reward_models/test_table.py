import numpy as np

from reward_models.table import RewardTable


def build(rewards: dict[int, float], version: int) -> RewardTable:
    return RewardTable.build(np.array(list(rewards), np.uint64), np.array(list(rewards.values())), (1, version))


def test_unknown_captions_earn_nothing_and_the_empty_one_is_known() -> None:
    table = build({5: 1.0, 7: 0.5, 9: np.nan}, 3)
    rewards, known = table.look_up(np.array([5, 7, 9, 11, 0], np.uint64))
    assert rewards.tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert known.tolist() == [True, True, False, False, True]


def with_goals(rewards: dict[int, float], goals: dict[int, int], version: int) -> RewardTable:
    ids = np.array(list(rewards), np.uint64)
    return RewardTable.build(
        ids, np.array(list(rewards.values())), (1, version), np.array([goals.get(n, -1) for n in rewards])
    )


def test_goals_stay_with_their_captions_whatever_the_order() -> None:
    table = with_goals({9: 1.0, 5: 0.5, 7: np.nan}, {9: 63, 5: 0, 7: 3}, 1)
    assert table.look_up_goals(np.array([[5, 9], [7, 0]], np.uint64)).tolist() == [[0, 63], [-1, -1]]
    assert build({5: 1.0}, 1).look_up_goals(np.array([5], np.uint64)).tolist() == [-1]


def test_tables_are_equal_by_what_they_say_not_by_version() -> None:
    assert build({5: 1.0}, 1).equals(build({5: 1.0}, 9))
    assert not build({5: 1.0}, 1).equals(build({5: 0.5}, 1))
    assert not with_goals({5: 1.0}, {5: 0}, 1).equals(with_goals({5: 1.0}, {5: 1}, 1))
    assert with_goals({5: 1.0}, {}, 1).equals(build({5: 1.0}, 1))
