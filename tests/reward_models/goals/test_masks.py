import numpy as np

from reward_models.goals.masks import masks_from, masks_of, numbers_of


def test_goal_g_is_bit_g_modulo_64_of_word_g_over_64() -> None:
    for goal in (0, 63, 64, 200, 255):
        masks = masks_of(np.array([goal]))
        assert masks.tolist() == [[2 ** (goal % 64) if word == goal // 64 else 0 for word in range(4)]]
        assert numbers_of(masks) == [2**goal]
    assert masks_of(np.array([[-1]], np.int8)).tolist() == [[[0, 0, 0, 0]]]


def test_masks_and_numbers_are_two_forms_of_one_set() -> None:
    masks = np.random.default_rng(0).integers(0, 2**64, (5, 4), np.uint64)
    np.testing.assert_array_equal(masks_from(numbers_of(masks)), masks)
    assert masks_from(numbers_of(masks)).dtype == np.uint64
    assert numbers_of(masks[:0]) == []
