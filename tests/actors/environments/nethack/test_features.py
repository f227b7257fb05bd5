"""NetHack's numbers as features: the engine's own, at every border of episodes, and functions of one's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from nle import nethack

from actors.environments.nethack.features import NAMES
from tests.actors.environments.nethack.test_vector import TIME, make, play

HERE = "tests.actors.environments.nethack.test_features"
PLACES = {
    **{"x": "X", "y": "Y", "strength": "STR25", "strength_percentage": "STR125", "dexterity": "DEX"},
    **{"constitution": "CON", "intelligence": "INT", "wisdom": "WIS", "charisma": "CHA", "score": "SCORE", "hp": "HP"},
    **{"max_hp": "HPMAX", "depth": "DEPTH", "gold": "GOLD", "energy": "ENE", "max_energy": "ENEMAX"},
    **{"armor_class": "AC", "monster_level": "HD", "experience_level": "XP", "experience_points": "EXP"},
    **{"turns": "TIME", "hunger": "HUNGER", "encumbrance": "CAP", "dungeon_number": "DNUM", "level_number": "DLEVEL"},
    **{"condition": "CONDITION", "alignment": "ALIGN"},
}


def test_the_names_are_in_the_order_of_nles_array() -> None:
    assert {name: getattr(nethack, f"NLE_BL_{place}") for name, place in PLACES.items()} == {
        name: index for index, name in enumerate(NAMES)
    }
    assert len(NAMES) == 27


@pytest.mark.parametrize("env_id", ["NetHackScore-v0", "MiniHack-KeyRoom-S5-v0"])
def test_features_are_the_engines_numbers_and_an_episodes_last_ones_its_own(env_id: str) -> None:
    env = make(env_id, num_envs=8, features=["blstats"], max_episode_steps=40)
    assert env.spec.features == NAMES
    obs, _ = env.reset()
    np.testing.assert_array_equal(env.features, obs["blstats"])
    rng, ends = np.random.default_rng(1), 0
    for _ in range(85):
        step = env.step(rng.integers(env.spec.num_actions, size=8))
        wanted, shown = step.obs["blstats"].copy(), step.obs["blstats"][:, TIME] > 0
        for end in step.ends:
            wanted[end.index] = end.final_obs["blstats"]
        np.testing.assert_array_equal(step.features[shown], wanted[shown])
        np.testing.assert_array_equal(env.features[shown], step.obs["blstats"][shown])
        ends += len(step.ends)
    assert ends >= 16
    assert env.take_errors() == (0, "")
    env.close()


def test_a_death_has_its_last_numbers_and_the_next_game_its_first() -> None:
    env = make(worker_index=9, features=["blstats"])
    *_, before, step = play(env, 85, seed=9)
    assert step.terminated.tolist() == [True], "this random player dies here"
    hp, turns = NAMES.index("hp"), NAMES.index("turns")
    assert step.features[0, hp] <= 0 < before.features[0, hp]
    assert step.features[0, turns] >= before.features[0, turns] > 20
    assert env.features[0, hp] > 0
    assert env.features[0, turns] == 1
    env.close()


def message_and_turn(obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> dict[str, float]:
    """Features of one's own."""
    assert obs["glyphs"].shape == (21, 79)
    return {"shows_message": float(obs["message"][0] > 0), "turn": float(obs["blstats"][TIME])}


def agent_and_stairs(obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Objects on the map."""
    stairs = np.argwhere(np.isin(obs["glyphs"], [nethack.GLYPH_CMAP_OFF + 23, nethack.GLYPH_CMAP_OFF + 24]))
    agent = {"kind": "self", "x": obs["blstats"][0], "y": obs["blstats"][1]}
    return [agent, {"kind": "stairs"}, *({"kind": "stairs", "x": x, "y": y} for y, x in stairs.tolist())]


def test_functions_of_ones_own_stand_beside_the_engines_numbers() -> None:
    sources = [f"{HERE}:message_and_turn", "blstats", f"objects:{HERE}:agent_and_stairs"]
    with pytest.raises(ValueError, match=r"got the name 'x' twice, of 'blstats' and '.*:named_x', wanted different"):
        make(features=["blstats", f"{HERE}:named_x"])
    env, bare = (make(num_envs=3, features=features, max_episode_steps=6) for features in (sources, []))
    assert env.spec.features[:3] == ("shows_message", "turn", "x")
    assert env.spec.features[29:32] == ("self_x", "self_y", "count_stairs")
    column = {name: number for number, name in enumerate(env.spec.features)}
    for step, other in zip(play(env, 20, seed=0), play(bare, 20, seed=0), strict=True):
        for name, array in other.obs.items():
            np.testing.assert_array_equal(step.obs[name], array)
        np.testing.assert_array_equal(step.features[:, column["turn"]], step.features[:, column["turns"]])
        np.testing.assert_array_equal(step.features[:, column["self_x"]], step.features[:, column["x"]])
    assert bare.features is None
    assert other.features is None
    env.close()
    bare.close()


def named_x(obs: Any, info: Any) -> dict[str, float]:
    """A name of the engine's."""
    return {"x": 1.0}


def failing_in_turn_four(obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> dict[str, float]:
    """Raises in one of the first steps."""
    return {"turn": {1: 1.0, 2: 2.0, 3: 3.0}[int(obs["blstats"][TIME])]}


def test_a_function_that_raises_is_a_failure_of_the_games() -> None:
    env = make(num_envs=2, features=[f"{HERE}:failing_in_turn_four"])
    lost = [step for step in play(env, 20, seed=0) if step.losses]
    assert lost
    assert np.isnan(lost[0].features).all()
    assert "raised KeyError in its features" in env.take_errors()[1].splitlines()[-1]
    env.close()


@pytest.mark.parametrize("source", ["minigrid", "obs", "info:end_status"])
def test_sources_that_do_not_fit_nethack_are_refused_in_one_line(source: str) -> None:
    wanted = f"env.features: got '{source}' for 'NetHackScore-v0', wanted blstats, module:function or objects:module"
    with pytest.raises(ValueError, match=wanted):
        make(features=[source])


def never_empty(obs: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, float]:
    """A feature that only screens inside a game have."""
    return {"health": int(obs["blstats"][10]) / int(obs["blstats"][11])}


def describe_never_empty(obs: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    return f"Health {never_empty(obs, info)['health'] > 0.5}."


def test_functions_of_ones_own_are_shown_no_screen_of_a_game_that_is_over() -> None:
    env = make(
        num_envs=8, features=[f"{HERE}:never_empty"], describer=f"{HERE}:describe_never_empty", max_episode_steps=400
    )
    env.reset()
    rng, ends, deaths = np.random.default_rng(1), 0, 0
    for _ in range(1500):
        step = env.step(rng.integers(env.spec.num_actions, size=8))
        ends, deaths = ends + len(step.ends), deaths + int(step.terminated.sum())
        assert not step.losses
        assert step.features is not None
        assert np.isfinite(step.features).all()
    assert env.take_errors() == (0, "")
    assert ends > 20
    assert deaths > 0
    env.close()
