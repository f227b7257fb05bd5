"""NetHack's states in words, against a slow reference by NLE's tables, and how many there are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from nle import nethack

from actors.environments.nethack import states
from actors.environments.nethack.crop import MAP_CELLS, MAP_WIDTH, OUTSIDE_GLYPH
from actors.environments.nethack.game import make_screens
from actors.environments.nethack.states import DescribedScreens
from actors.environments.nethack.vector import NetHackEnvironment
from tests.actors.environments.nethack.test_vector import make, play

CLASS_WORDS = {
    nethack.ARMOR_CLASS: "armor",
    nethack.FOOD_CLASS: "food",
    nethack.GEM_CLASS: "a gem",
    nethack.WEAPON_CLASS: "a weapon",
    nethack.COIN_CLASS: "gold",
}
FAMILIAR = ("closed door", "open door", "staircase down", "staircase up", "fountain")


def glyph_of(name: str) -> int:
    """The glyph of a monster, of an object by its class, or of a symbol."""
    for glyph in range(OUTSIDE_GLYPH):
        if nethack.glyph_is_cmap(glyph):
            known = nethack.symdef.from_idx(nethack.glyph_to_cmap(glyph)).explanation
        elif nethack.glyph_is_normal_monster(glyph):
            known = nethack.permonst(nethack.glyph_to_mon(glyph)).mname
        else:
            known = ""
        if known == name:
            return glyph
    raise ValueError(name)


def screens_with(*glyphs: int, num_screens: int = 1, **stats: int) -> dict[str, np.ndarray]:
    """Screens that show these glyphs, of a healthy agent on the first level."""
    screens = make_screens(num_screens, ("glyphs",), ("blstats", "message"))
    screens["glyphs"][:, :MAP_CELLS] = nethack.GLYPH_CMAP_OFF
    screens["glyphs"][:, 100 : 100 + len(glyphs)] = glyphs
    blstats = {"x": 5, "y": 5, "hp": 12, "max_hp": 12, "depth": 1, "time": 1, "hunger": 1} | stats
    places = {"x": 0, "y": 1, "hp": 10, "max_hp": 11, "depth": 12, "time": 20, "hunger": 21}
    for name, place in places.items():
        screens["blstats"][:, place] = blstats[name]
    return screens


def said(screens: Mapping[str, np.ndarray]) -> str:
    (text,) = DescribedScreens(1)(screens)
    return text.decode()


def test_a_screen_is_told_by_what_it_shows_and_not_where() -> None:
    jackal, door = glyph_of("jackal"), glyph_of("closed door")
    text = "Healthy. On the first level. A closed door. A jackal. Your pet. Gold."
    gold = nethack.GLYPH_OBJ_OFF + next(
        index for index in range(nethack.NUM_OBJECTS) if ord(nethack.objclass(index).oc_class) == nethack.COIN_CLASS
    )
    shown = [jackal, door, nethack.GLYPH_PET_OFF + 12, gold]
    assert said(screens_with(*shown)) == text
    assert said(screens_with(*shown[::-1], door, glyph_of("corridor"))) == text
    assert said(screens_with(jackal, x=100 % MAP_WIDTH, y=100 // MAP_WIDTH)) == "Healthy. On the first level."
    assert said(screens_with(jackal, x=-1, y=-1)) == "Healthy. On the first level. A jackal."
    assert said(screens_with(glyph_of("Oracle"), glyph_of("acid blob"), glyph_of("molten lava"))).endswith(
        "Molten lava. An acid blob. Oracle."
    )


def test_screens_are_described_alike_whatever_they_showed_before() -> None:
    rng, describe = np.random.default_rng(0), DescribedScreens(5)
    screens, texts = screens_with(num_screens=5), set()
    for _ in range(20):
        changed = rng.random(5) < 0.3
        screens["glyphs"][changed, rng.integers(MAP_CELLS)] = rng.integers(OUTSIDE_GLYPH)
        screens["blstats"][changed, 10] = rng.integers(12)
        told = describe(screens)
        assert describe({name: array[:2] for name, array in screens.items()}) == told[:2]
        assert told == [said({name: array[i : i + 1] for name, array in screens.items()}).encode() for i in range(5)]
        texts |= set(told)
    assert len(texts) > 10


def test_at_most_eight_things_are_told() -> None:
    assert said(screens_with(*range(20))).count("A ") + said(screens_with(*range(20))).count("An ") == 8


@pytest.mark.parametrize(
    ("stats", "text"),
    [
        ({"hp": 9}, "Healthy. On the first level."),
        ({"hp": 8}, "Hurt. On the first level."),
        ({"hp": 5, "depth": 4}, "Hurt. On an upper level."),
        ({"hp": 4, "depth": 5}, "Near death. Deep in the dungeon."),
        ({"hp": 0, "depth": 50}, "Near death. Very deep in the dungeon."),
        ({"hunger": 0}, "Healthy. Satiated. On the first level."),
        ({"hunger": 2}, "Healthy. Hungry. On the first level."),
        ({"hunger": 4}, "Healthy. Weak with hunger. On the first level."),
    ],
)
def test_health_hunger_and_depth_are_told_in_few_words(stats: dict[str, int], text: str) -> None:
    assert said(screens_with(**stats)) == text


def test_standing_on_a_staircase_down_is_told() -> None:
    screens = screens_with()
    screens["internal"][:, 4] = 1
    assert said(screens) == "Healthy. On the first level. On a staircase down."


def test_what_is_passed_over_by_its_number_is_nothing() -> None:
    kinds, words = states._kinds()
    symbols = [*range(states.NUM_WALLS), *states.FLOORS]
    assert not kinds[[nethack.GLYPH_CMAP_OFF + symbol for symbol in symbols]].any()
    assert {nethack.symdef.from_idx(symbol).explanation for symbol in symbols} <= {
        *("dark part of a room", "wall", "doorway", "floor of a room", "corridor", "lit corridor"),
    }
    assert kinds[OUTSIDE_GLYPH] == 0
    for name in FAMILIAR:
        assert words[kinds[glyph_of(name)]] in (f"a {name}", f"an {name}")
    assert len(kinds) == OUTSIDE_GLYPH + 1 == nethack.MAX_GLYPH + 1


def slowly(screens: Mapping[str, np.ndarray], i: int) -> set[str]:
    """Some of the facts of a screen, cell by cell."""
    x, y = screens["blstats"][i, :2].tolist()
    facts = set()
    for cell, glyph in enumerate(screens["glyphs"][i, :MAP_CELLS].tolist()):
        if cell == y * MAP_WIDTH + x:
            continue
        if nethack.glyph_is_pet(glyph):
            facts.add("your pet")
        elif nethack.glyph_is_normal_monster(glyph):
            facts.add(nethack.permonst(nethack.glyph_to_mon(glyph)).mname)
        elif nethack.glyph_is_normal_object(glyph):
            kind = ord(nethack.objclass(nethack.glyph_to_obj(glyph)).oc_class)
            facts |= {CLASS_WORDS[kind]} if kind in CLASS_WORDS else set()
        elif nethack.glyph_is_cmap(glyph):
            name = nethack.symdef.from_idx(nethack.glyph_to_cmap(glyph)).explanation
            facts |= {name} & set(FAMILIAR)
    return facts


def random_play(env_id: str, num_steps: int, num_envs: int = 16, **config: Any) -> tuple[set[bytes], int]:
    """The distinct states of random play, of which some are compared with the slow reference; and how many were."""
    env = make(env_id, num_envs=num_envs, describer="nethack", **config)
    assert isinstance(env, NetHackEnvironment)
    env.reset()
    assert env.states is not None
    seen, compared, rng = set(env.states), 0, np.random.default_rng(0)
    for t in range(num_steps // num_envs):
        step = env.step(rng.integers(env.spec.num_actions, size=num_envs))
        assert step.states is not None
        seen |= {*step.states, *env.states}
        i = t % num_envs
        if t % 10 == 0 and not (step.terminated | step.truncated)[i]:
            text = step.states[i].decode().lower()
            facts = slowly(env._screens, i)
            if len(facts) < states.MAX_THINGS - 2:
                compared += len(facts)
                assert all(fact.lower() in text for fact in facts), (facts, text)
    assert env.take_errors() == (0, "")
    env.close()
    return seen, compared


@pytest.mark.parametrize(
    ("env_id", "num_steps", "most"),
    [
        ("NetHackScore-v0", 4_000, 600),
        ("MiniHack-LockedDoor-v0", 1_500, 60),
        pytest.param("NetHackScore-v0", 100_000, 5_000, marks=pytest.mark.slow),
        pytest.param("MiniHack-LockedDoor-v0", 20_000, 200, marks=pytest.mark.slow),
        pytest.param("MiniHack-KeyRoom-S5-v0", 20_000, 200, marks=pytest.mark.slow),
    ],
)
def test_random_play_meets_few_distinct_states(env_id: str, num_steps: int, most: int) -> None:
    seen, compared = random_play(env_id, num_steps)
    assert 1 < len(seen) <= most
    assert compared > 5


def test_an_episode_ends_in_its_own_last_state_and_the_next_begins_healthy() -> None:
    env = make(worker_index=9, describer="nethack")
    *_, before, step = play(env, 85, seed=9)
    assert step.terminated.tolist() == [True], "this random player dies here"
    assert step.states[0].startswith(b"Near death. On the first level.")
    assert step.states[0] != before.states[0]
    assert env.states[0].startswith(b"Healthy. On the first level.")
    env.close()


def name_of_place(obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> str:
    """A describer of one's own."""
    assert obs["glyphs"].shape == (21, 79)
    return f"Turn {obs['blstats'][20]}. {'Message.' if obs['message'][0] else ''}"


def failing_in_turn_four(obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> str:
    """Raises in one of the first steps."""
    return {1: "one", 2: "two", 3: "three"}[int(obs["blstats"][20])]


def test_a_function_of_ones_own_describes_each_game() -> None:
    env = make(num_envs=2, describer="tests.actors.environments.nethack.test_states:name_of_place", max_episode_steps=5)
    steps = play(env, 5, seed=0)
    assert {step.states[0][:6] for step in steps} <= {f"Turn {turn}".encode() for turn in range(1, 7)}
    assert steps[-1].truncated.all()
    assert env.states[0] == b"Turn 1. Message."
    env.close()


def test_a_function_that_raises_is_a_failure_of_the_games() -> None:
    env = make(num_envs=2, describer="tests.actors.environments.nethack.test_states:failing_in_turn_four")
    steps = play(env, 20, seed=0)
    lost = [step for step in steps if step.losses]
    assert lost
    assert lost[0].states == [b"", b""]
    assert "raised KeyError in its describer" in env.take_errors()[1].splitlines()[-1]
    env.close()
