import numpy as np

from reward_models.table import RewardTable


def build(rewards: dict[int, float], version: int) -> RewardTable:
    return RewardTable.build(np.array(list(rewards), np.uint64), np.array(list(rewards.values())), (1, version))


def test_a_completed_table_keeps_its_own_rewards_and_takes_only_what_it_lacks() -> None:
    table = build({5: 1.0, 7: 0.0}, 3).completed_by(build({7: 1.0, 9: 0.5}, 8))
    rewards, known = table.look_up(np.array([5, 7, 9, 11, 0], np.uint64))
    assert rewards.tolist() == [1.0, 0.0, 0.5, 0.0, 0.0]
    assert known.tolist() == [True, True, True, False, True]
    assert table.reward_version == (1, 3)


def test_nothing_to_complete_is_the_same_table() -> None:
    table = build({5: 1.0}, 3)
    assert table.completed_by(build({5: 0.0}, 1)) is table
