"""The environment benchmark compares like with like."""

import itertools

import numpy as np
import pytest

from tests.benchmarks.env import GYMNASIUM, LEAN, WRAPPED, summarise
from tests.benchmarks.game_windows import WAYS, make_arrays, make_games


def test_all_ways_deliver_the_same_observations_of_the_same_games() -> None:
    ways = [GYMNASIUM, *WAYS]
    games, arrays = [make_games(way, 4, 4) for way in ways], [make_arrays(4) for _ in ways]
    rng, episodes = np.random.default_rng(4), 0
    try:
        for each in games:
            each.reset()
        assert {each.num_actions for each in games} == {23}
        for _ in range(460):
            actions = rng.integers(23, size=4)
            ended = [each.step(actions, out) for each, out in zip(games, arrays, strict=True)]
            assert len(set(ended)) == 1
            episodes += ended[0]
            for one, other in itertools.pairwise(arrays):
                for name, array in one.items():
                    np.testing.assert_array_equal(array, other[name], err_msg=name)
    finally:
        for each in games:
            each.close()
    assert episodes >= 2, "nothing was said about what follows an episode's end"


@pytest.mark.parametrize(("envs", "primary"), [((16, 64, 128), 64), ((4, 8), 8)])
def test_the_ratio_is_that_of_64_environments_or_else_of_the_most(envs: tuple[int, ...], primary: int) -> None:
    rates = {LEAN: 3.0, GYMNASIUM: 2.0, WRAPPED: 1.0}
    measured = {
        (way, n): [{"steps_per_s": rate * n}, {"steps_per_s": rate * n}] for way, rate in rates.items() for n in envs
    }
    result = summarise(measured, {})
    assert result["ratio_of"] == [f"lean, {primary}", f"gymnasium API, {primary}"]
    assert result["ratio"] == 1.5
    assert {n: ratio["ratio"] for n, ratio in result["ratios"][WRAPPED].items()} == {str(n): 3.0 for n in envs}
    assert result["medians"][f"lean, {primary}"] == 3.0 * primary
