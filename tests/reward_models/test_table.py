import pickle

import numpy as np
import pytest

from reward_models.goals.masks import masks_of
from reward_models.table import IdIndex, RewardTable
from reward_models.training import saved_table

LAST = np.iinfo(np.uint64).max


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
        ids, np.array(list(rewards.values())), (1, version), masks_of(np.array([goals.get(n, -1) for n in rewards]))
    )


def test_goals_stay_with_their_captions_whatever_the_order() -> None:
    table = with_goals({9: 1.0, 5: 0.5, 7: np.nan}, {9: 255, 5: 0, 7: 3}, 1)
    wanted = masks_of(np.array([[0, 255], [-1, -1]]))
    np.testing.assert_array_equal(table.look_up_goals(np.array([[5, 9], [7, 0]], np.uint64)), wanted)
    assert build({5: 1.0}, 1).look_up_goals(np.array([5], np.uint64)).tolist() == [[0, 0, 0, 0]]


def test_tables_are_equal_by_what_they_say_not_by_version() -> None:
    assert build({5: 1.0}, 1).equals(build({5: 1.0}, 9))
    assert not build({5: 1.0}, 1).equals(build({5: 0.5}, 1))
    assert not with_goals({5: 1.0}, {5: 0}, 1).equals(with_goals({5: 1.0}, {5: 1}, 1))
    assert with_goals({5: 1.0}, {}, 1).equals(build({5: 1.0}, 1))


def hashes(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.unique(rng.integers(0, LAST, n, dtype=np.uint64, endpoint=True))


@pytest.mark.parametrize(
    "ids",
    [
        np.array([0], np.uint64),
        np.array([0, LAST], np.uint64),
        np.arange(1000, dtype=np.uint64),  # all in one bucket
        np.arange(1000, dtype=np.uint64) + np.uint64(LAST - 999),
        hashes(3, np.random.default_rng(0)),
        hashes(4096, np.random.default_rng(1)),
        hashes(50_000, np.random.default_rng(2)),
    ],
    ids=["one", "ends", "small", "large", "few", "power", "many"],
)
def test_the_index_finds_what_a_binary_search_finds(ids: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    near = np.concatenate([ids, ids + np.uint64(1), ids - np.uint64(1), np.array([0, 1, LAST], np.uint64)])
    queries = rng.permutation(np.concatenate([near, hashes(500, rng)])).reshape(-1, 1)
    positions, known = IdIndex(ids).find(queries)
    assert positions.shape == known.shape == queries.shape
    assert np.array_equal(known, np.isin(queries, ids))
    assert np.array_equal(ids[positions[known]], queries[known])
    assert positions.min() >= 0
    assert positions.max() < len(ids)


def test_hashes_need_few_comparisons_however_many_they_are() -> None:
    assert IdIndex(hashes(1_000_000, np.random.default_rng(0)))._depth <= 5


def test_a_table_that_travelled_looks_up_the_same() -> None:
    ids = hashes(1000, np.random.default_rng(0))
    table = RewardTable.build(ids, np.arange(1000, dtype=np.float32), (1, 1))
    other = pickle.loads(pickle.dumps(table))
    for one, two in zip(table.look_up(ids[::-1]), other.look_up(ids[::-1]), strict=True):
        assert np.array_equal(one, two)


def test_a_checkpoint_with_one_goal_for_each_caption_loads_as_masks() -> None:
    state = {"ids": np.array([0, 5, 9], np.uint64), "rewards": np.array([0.0, 1.0, 0.5], np.float32)}
    table = saved_table({**state, "goals": np.array([-1, 63, 0], np.int8)}, 2)
    assert table.equals(with_goals({5: 1.0, 9: 0.5}, {5: 63, 9: 0}, 1))
    assert saved_table({**state, "goals": table.goals}, 2).equals(table)
    assert saved_table({**state, "goals": None}, 2).goals is None


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"goals must be masks of shape \(1, 4\), got \(1,\)"):
        RewardTable.build(np.array([5], np.uint64), np.ones(1), (1, 1), np.zeros(1, np.int8))


def test_what_achieves_goals_is_found_with_its_place() -> None:
    table = with_goals({9: 1.0, 5: 0.5, 7: 0.25}, {9: 255, 5: 0}, 1)
    known, places, masks = table.find_goals(np.array([[5, 8], [7, 9]], np.uint64))
    assert known.tolist() == [[True, False], [True, True]]
    assert places.tolist() == [0, 3]
    np.testing.assert_array_equal(masks, masks_of(np.array([0, 255])))
    known, places, masks = build({5: 1.0}, 1).find_goals(np.array([5, 6], np.uint64))
    assert (known.tolist(), places.tolist(), masks.shape) == ([True, False], [], (0, 4))
