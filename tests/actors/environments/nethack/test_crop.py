"""Windows around the agent, against cutting them out of a padded map."""

import numpy as np
import pytest
from nle import nethack
from nle.env.tasks import NetHackScore

from actors.environments.factory import make_environment
from actors.environments.nethack.crop import (
    CHARACTER_WINDOW,
    MAP_HEIGHT,
    MAP_WIDTH,
    OUTSIDE_GLYPH,
    make_maps,
    view_for,
)
from actors.environments.nethack.vector import NetHackEnvironment
from configs.schema import EnvConfig, PolicyConfig


def test_the_maps_are_nethacks() -> None:
    assert (MAP_HEIGHT, MAP_WIDTH) == nethack.DUNGEON_SHAPE
    assert OUTSIDE_GLYPH == nethack.MAX_GLYPH


@pytest.mark.parametrize(("x", "y"), [(0, 0), (78, 20), (40, 10), (3, 19)])
def test_the_hero_is_at_row_6_and_column_6_of_the_character_window(x: int, y: int) -> None:
    view, maps = view_for("rendered_crop"), make_maps(2, ("chars", "colors"))
    rng = np.random.default_rng(0)
    for name, padding in (("chars", 32), ("colors", 0)):
        maps[name][:, :-1] = rng.integers(33, 127, (2, MAP_HEIGHT * MAP_WIDTH))
        grid = np.pad(maps[name][1, :-1].reshape(MAP_HEIGHT, MAP_WIDTH), 6, constant_values=padding)
        wanted = grid[y : y + 12, x : x + 12]
        window = np.empty((2, *view.spec.shape), view.spec.dtype)
        view.cut(maps, np.array([5, x]), np.array([5, y]), window)
        assert window.shape == (2, 12, 12, 2)
        assert window.dtype == np.uint8
        assert np.array_equal(window[1, :, :, ("chars", "colors").index(name)], wanted)
        assert wanted[6, 6] == maps[name][1, y * MAP_WIDTH + x]


@pytest.mark.parametrize(
    "env_id", ["NetHackScore-v0", "Delphi/NetHackOracle-v0", "MiniHack-Room-5x5-v0", "MiniHack-KeyRoom-S5-v0"]
)
def test_the_character_window_of_a_game_has_the_hero_in_it_to_the_last_screen(env_id: str) -> None:
    config = EnvConfig(id=env_id, max_episode_steps=40)
    env = make_environment(config, num_envs=2, run_seed=0, worker_index=0, policy=PolicyConfig(network="rendered_crop"))
    assert isinstance(env, NetHackEnvironment)
    assert list(env.spec.observations) == ["character_crop", "blstats", "message"]
    assert env.spec.observations["character_crop"].shape == (CHARACTER_WINDOW, CHARACTER_WINDOW, 2)
    env.reset()
    rng = np.random.default_rng(0)
    seen: set[str] = set()
    for _ in range(100):
        step = env.step(rng.integers(env.spec.num_actions, size=2))
        for window in [*step.obs["character_crop"], *(end.final_obs["character_crop"] for end in step.ends)]:
            characters, colours = np.moveaxis(window, -1, 0)
            assert chr(characters[6, 6]) == "@"
            assert not colours[characters == ord(" ")].any()
            seen |= set(map(chr, np.unique(characters)))
    assert seen >= set("@. ")
    env.close()


def test_the_character_window_is_what_the_terminal_shows_of_the_map() -> None:
    env = NetHackScore(
        observation_keys=("glyphs", "chars", "colors", "blstats", "message", "tty_chars", "tty_colors"),
        fix_moon_phase=True,
    )
    env.seed(1, 2, reseed=False)
    obs, _ = env.reset()
    view, rng = view_for("rendered_crop"), np.random.default_rng(0)
    equal = []
    for action in rng.integers(23, size=1000):
        x, y = obs["blstats"][:2]
        maps = {
            name: np.append(obs[name].ravel(), np.uint8(outside))[None]
            for name, outside in (("chars", 32), ("colors", 0))
        }
        window = np.empty(view.spec.shape, view.spec.dtype)
        view.cut(maps, x[None], y[None], window[None])
        on_map = np.clip([y - 6, y + 6], 0, MAP_HEIGHT)
        rows = slice(*(on_map - (y - 6)))
        # The map begins at the terminal's second line.
        screen = np.stack(
            [np.pad(obs[name][1:22, :79], 6)[y : y + 12, x : x + 12] for name in ("tty_chars", "tty_colors")], -1
        )
        screen[screen[..., 0] == 0] = 32, 0
        equal.append(np.array_equal(np.where(window == 32, 0, window)[rows], np.where(screen == 32, 0, screen)[rows]))
        obs, _, done, _, _ = env.step(action)
        if done:
            break
    env.close()
    assert np.mean(equal) > 0.95, "all but where a text lies over the map"


@pytest.mark.parametrize("size", [8, 12])
def test_a_glyph_crop_without_a_middle_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"must be odd, got {size}"):
        view_for("glyph_crop", size)
