"""NetHack is NetHack however it was registered: by its class, by a function, behind wrappers."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from actors.environments.errors import EnvironmentFailure
from actors.environments.factory import make_environment
from actors.environments.gymnasium_vector import GymnasiumEnvironment
from actors.environments.nethack.vector import NetHackEnvironment
from actors.environments.vector import VectorEnvironment
from configs.schema import EnvConfig
from tests.odd_environments import DESCRIPTION, class_of_its_own


def make(name: str, limit: int = 0, seed: int = 1, **options: Any) -> NetHackEnvironment:
    config = EnvConfig(id=f"tests.odd_environments:MiniHack-Odd-{name}-v0", max_episode_steps=limit, options=options)
    env = make_environment(config, num_envs=2, run_seed=seed, worker_index=0)
    assert isinstance(env, NetHackEnvironment)
    return env


def play(env: VectorEnvironment, num_steps: int = 40) -> list[tuple[object, ...]]:
    """Observations and rewards of the same sequence of actions."""
    rng, history = np.random.default_rng(0), []
    env.reset()
    for _ in range(num_steps):
        step = env.step(rng.integers(0, 2, 2) * 2 + 1 if env.spec.num_actions > 2 else rng.integers(0, 2, 2))
        ends = [(end.index, end.info["turns"], end.final_obs["message"].tobytes()) for end in step.ends]
        history.append(
            (step.rewards.tolist(), step.captions, step.truncated.tolist(), ends, step.obs["glyph_crop"].tobytes())
        )
    env.close()
    return history


def test_a_function_makes_the_same_game_as_the_class_and_its_seeds_are_kept() -> None:
    history = play(make("level"))
    assert play(make("level")) == history, "the same seed is the same game"
    assert play(make("bare_level")) == history, "a function that takes no arguments"
    assert play(make("limited_level"), 12) == history[:12] or history[11][2] != [True, True]
    assert not make("level").spec.notices


@pytest.mark.parametrize(
    ("name", "own"), [("level", 30), ("limited_level", 12), ("wrapped_level", 12), ("registered", 9)]
)
def test_the_lowest_limit_anywhere_is_its_own_and_a_longer_one_is_kept_and_said(name: str, own: int) -> None:
    for limit, expected in ((0, own), (own + 5, own + 5)):
        env = make(name, limit)
        env.reset()
        still = 1 if env.spec.num_actions == 2 else 3  # westwards, into the wall
        truncated = [bool(env.step(np.full(2, still)).truncated[0]) for _ in range(expected)]
        assert truncated.index(True) == expected - 1
        assert any(f"its own limit of {own} steps" in notice for notice in env.spec.notices) == (limit > own)
        env.close()


def test_wrappers_that_change_something_are_stepped_through_and_said() -> None:
    plain, wrapped = play(make("level"), 12), play(env := make("wrapped_level"), 12)
    assert env.spec.num_actions == 2
    assert [shown[1] for shown in wrapped] == [shown[1] for shown in plain], "the same moves show the same messages"
    np.testing.assert_allclose([shown[0] for shown in wrapped], 10 * np.array([shown[0] for shown in plain]), rtol=1e-6)
    (notice,) = env.spec.notices
    assert "is NetHack within TwoActions, TimeLimit, TenTimes" in notice
    assert "register the class itself" in notice
    (registered,) = make("registered").spec.notices
    assert "within TenTimes" in registered, "wrappers of the registration count as well"


@pytest.mark.parametrize(
    ("name", "captioner", "reason"),
    [
        ("observed_level", "message", "their observations are not NetHack's"),
        ("wrapped_level", "tests.toy_environments:say_nothing", "env.captioner is tests.toy_environments:say_nothing"),
    ],
)
def test_where_wrappers_or_captions_are_not_nethacks_it_is_played_as_any_other_and_what_is_lost_is_said(
    name: str, captioner: str, reason: str
) -> None:
    config = EnvConfig(id=f"tests.odd_environments:MiniHack-Odd-{name}-v0", captioner=captioner)
    env = make_environment(config, num_envs=1, run_seed=1, worker_index=0)
    assert isinstance(env, GymnasiumEnvironment)
    env.reset()
    env.step(np.zeros(1, np.int64))
    assert env.take_errors() == (0, "")
    (notice,) = env.spec.notices
    assert f"played as any other, since {reason}" in notice
    for lost in ("last messages of episodes", "seed is ignored", "no glyph network"):
        assert lost in notice
    env.close()


def test_a_level_that_pays_no_number_is_an_environment_error() -> None:
    env = make("unpayable_level")
    env.reset()
    step = env.step(np.zeros(2, np.int64))
    assert step.rewards.tolist() == [0, 0]
    assert list(step.losses) == [0, 1]
    count, text = env.take_errors()
    assert count == 1
    assert text.endswith(
        "environment 'MiniHack-Odd-unpayable_level-v0' gave the reward nan in step, wanted a finite number"
    )
    env.close()


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({}, 30),
        ({"observation_keys": ("chars", "message"), "fix_moon_phase": False}, 30),
        ({"max_episode_steps": float("inf")}, 0),
        ({"max_episode_steps": None}, 0),
    ],
)
def test_a_class_with_a_constructor_of_its_own_is_the_same_game(given: dict[str, Any], limit: int) -> None:
    gymnasium.register("MiniHack-OwnClass-v0", entry_point=class_of_its_own(**given))
    try:
        env = make_environment(EnvConfig(id="MiniHack-OwnClass-v0"), num_envs=2, run_seed=1, worker_index=0)
    finally:
        del gymnasium.registry["MiniHack-OwnClass-v0"]
    assert isinstance(env, NetHackEnvironment)
    env.reset()
    truncated = [bool(env.step(np.full(2, 3)).truncated[0]) for _ in range(31)]
    assert [t + 1 for t, ends in enumerate(truncated) if ends] == ([limit] if limit else [])
    assert env.take_errors() == (0, "")
    env.close()


@pytest.mark.parametrize(
    "des_file", ["nowhere.des", 'MAZE: "mylevel" nonsense', DESCRIPTION.replace("mylevel", "another")]
)
def test_a_level_that_is_not_there_is_not_played_in_another_place(des_file: str) -> None:
    config = EnvConfig(id="MiniHack-Navigation-Custom-v0", options={"des_file": des_file})
    with pytest.raises(EnvironmentFailure, match="'MiniHack-Navigation-Custom-v0' has no level: its des_file is miss"):
        make_environment(config, num_envs=1, run_seed=1, worker_index=0)


def test_actions_that_are_no_keys_are_said() -> None:
    config = EnvConfig(id="NetHackScore-v0", options={"actions": ["north"]})
    with pytest.raises(EnvironmentFailure, match=r"'NetHackScore-v0' raised ValueError in making: .*'north'"):
        make_environment(config, num_envs=1, run_seed=1, worker_index=0)


def test_the_games_limit_counts_its_own_steps() -> None:
    for limit, expected in ((0, 8), (5, 5), (32, 32)):
        env = make("skipping_level", limit)
        env.reset()
        truncated = [bool(env.step(np.full(2, 3)).truncated[0]) for _ in range(expected)]
        assert truncated.index(True) == expected - 1
        env.close()


def test_what_else_happens_at_a_limit_around_the_game_stays() -> None:
    env = make("deadline_level")
    env.reset()
    steps = [env.step(np.full(2, 3)) for _ in range(5)]
    assert [step.truncated[0] for step in steps] == [False] * 4 + [True]
    assert steps[-1].rewards[0] < -99
    assert "is NetHack within Deadline" in env.spec.notices[0]
    env.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: (given[0], None, *given[2:]), "gave the reward None in step, wanted a finite number"),
        (lambda given: (given[0], np.ones(2), *given[2:]), "gave the reward array([1., 1.]) in step, wanted a finite"),
        (lambda given: (*given[:2], None, *given[3:]), "gave terminated None in step, wanted True or False"),
        (lambda given: (*given[:2], *given[3:]), "returned 4 values from step, wanted (observation, reward,"),
        (lambda given: (*given[:4], None), "gave NoneType as info in step, wanted a dict"),
        (lambda given: [given[0], np.array([7]), np.False_, 0, {}], None),
    ],
)
def test_what_wrappers_around_the_game_return_is_checked(change: Callable[[Any], Any], message: str | None) -> None:
    env = make("returning_level", change=change)
    env.reset()
    step = env.step(np.full(2, 3))
    count, text = env.take_errors()
    if message is None:
        assert (count, step.rewards.tolist()) == (0, [7, 7])
    else:
        assert (count, step.rewards.tolist()) == (1, [0, 0])
        assert text.splitlines()[-1].startswith(f"environment 'MiniHack-Odd-returning_level-v0' {message}")
    env.close()


@pytest.mark.parametrize("name", ["env", "simulator", "_game"])
def test_a_game_is_found_under_whatever_name_it_is_held(name: str) -> None:
    assert "is NetHack within Holding" in make("Holding", held_as=name).spec.notices[0]


@pytest.mark.parametrize("renewed", [1, -1])
def test_a_game_made_anew_in_reset_is_played_as_any_other_and_said_once(renewed: int) -> None:
    config = EnvConfig(id="tests.odd_environments:MiniHack-Odd-Holding-v0", options={"renewed": renewed})
    env = make_environment(config, num_envs=1, run_seed=1, worker_index=0)
    assert isinstance(env, GymnasiumEnvironment)
    for _ in range(2):
        env.reset()
        assert not env.step(np.zeros(1, np.int64)).losses
    (notice,) = (*env.spec.notices, *env.take_notices())
    assert "NetHack within Holding, and is played as any other, since they make a new game in reset" in notice
    env.close()


def test_a_game_that_is_replaced_later_is_an_environment_error() -> None:
    env = make("Holding", renewed=3)
    env.reset()
    env.reset()
    assert env.take_errors() == (0, "")
    env.reset()
    count, text = env.take_errors()
    assert count == 1
    assert "'MiniHack-Odd-Holding-v0' put another NetHack game in the place of its own in reset" in text
    env.close()
