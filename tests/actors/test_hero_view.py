"""Windows around the hero, against cutting them out of a padded map."""

import numpy as np
import pytest
from nle import nethack

from actors.environment import make_environment
from actors.hero_view import CHARACTER_WINDOW, MAP_HEIGHT, MAP_WIDTH, OUTSIDE_GLYPH, character_view, glyph_view, make_maps
from actors.nethack import NetHackEnvironment
from configs.schema import EnvConfig


def test_the_maps_are_nethacks() -> None:
    assert (MAP_HEIGHT, MAP_WIDTH) == nethack.DUNGEON_SHAPE
    assert OUTSIDE_GLYPH == nethack.MAX_GLYPH


@pytest.mark.parametrize(("x", "y"), [(0, 0), (78, 20), (40, 10), (3, 19)])
def test_the_hero_is_at_row_6_and_column_6_of_the_character_window(x: int, y: int) -> None:
    view, maps = character_view(), make_maps(2, ("chars", "colors"))
    rng = np.random.default_rng(0)
    for name, padding in (("chars", 32), ("colors", 0)):
        maps[name][:, :-1] = rng.integers(33, 127, (2, MAP_HEIGHT * MAP_WIDTH))
        grid = np.pad(maps[name][1, :-1].reshape(MAP_HEIGHT, MAP_WIDTH), 6, constant_values=padding)
        wanted = grid[y : y + 12, x : x + 12]
        window = view.cut(maps, np.array([5, x]), np.array([5, y]))
        assert window.shape == (2, 12, 12, 2)
        assert window.dtype == np.uint8
        assert np.array_equal(window[1, :, :, ("chars", "colors").index(name)], wanted)
        assert wanted[6, 6] == maps[name][1, y * MAP_WIDTH + x]


def test_the_character_window_of_a_game_is_what_the_terminal_shows_of_the_map() -> None:
    config = EnvConfig(max_episode_steps=40)
    env = make_environment(config, num_envs=2, run_seed=0, worker_index=0, network="rendered_crop")
    assert isinstance(env, NetHackEnvironment)
    assert list(env.spec.observations) == ["character_crop", "blstats", "message"]
    assert env.spec.observations["character_crop"].shape == (CHARACTER_WINDOW, CHARACTER_WINDOW, 2)
    env.reset()
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        step = env.step(rng.integers(23, size=2))
        for end in step.ends:
            assert end.final_obs["character_crop"].shape == (12, 12, 2)
            assert chr(end.final_obs["character_crop"][6, 6, 0]) == "@"
        chars, colors = np.moveaxis(step.obs["character_crop"], -1, 0)
        assert (chars[:, 6, 6] == ord("@")).all()
        assert not colors[chars == ord(" ")].any()
        seen |= set(map(chr, np.unique(chars)))
    assert seen >= set("@.|- d<") or seen >= set("@.|- f")
    env.close()


@pytest.mark.parametrize("size", [8, 12])
def test_a_glyph_crop_without_a_middle_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"must be odd, got {size}"):
        glyph_view(size)
