"""One C call for all engines against NLE's own objects: the same games, errors included; what it does not know it
leaves to them."""

import logging
from typing import Any

import numpy as np
import pytest

from actors.environments.factory import make_environment
from actors.environments.nethack import crop, engine_calls, episode_stats, native
from actors.environments.nethack.engine_calls import POISON, EngineCalls, NativeCalls
from actors.environments.nethack.episode_stats import DEPTH, SCORE, TIME, X, Y
from actors.environments.nethack.game import Game
from actors.environments.nethack.lean_rewards import HUNGER
from actors.environments.nethack.tasks import ASKING
from actors.environments.nethack.vector import NetHackEnvironment
from configs.schema import EnvConfig
from tests.actors.environments.nethack.test_lean_stepping import CASES, LEVEL_TELEPORT, MONK, Pair, play_at_random

HITPOINTS = 10  # index into blstats
MOVING = {"blstats": {X, Y, SCORE, HITPOINTS, TIME}, "internal": {ASKING, HUNGER}}
"""Fields on which rewards, prompts and metrics depend, and which a few hundred random steps change."""


@pytest.fixture
def without_c(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (engine_calls, crop, episode_stats):
        monkeypatch.setattr(module, "library", lambda: None)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    engine_calls._say.cache_clear()
    caplog.set_level(logging.INFO, engine_calls.logger.name)
    return caplog


def make(num_envs: int = 2, **options: Any) -> NetHackEnvironment:
    config = EnvConfig(options=options)
    env = make_environment(config, num_envs=num_envs, run_seed=0, worker_index=0)
    assert isinstance(env, NetHackEnvironment)
    return env


def needs_the_call() -> None:
    if native.library() is None:
        pytest.skip("this machine has no C compiler")
    if why := engine_calls.unknown_build():
        pytest.skip(why)


@pytest.mark.usefixtures("without_c")
def test_random_play_without_c_is_the_same_to_the_last_bit() -> None:
    play_at_random("Score", 320, limit=300)


@pytest.mark.slow
@pytest.mark.usefixtures("without_c")
@pytest.mark.parametrize("case", [case for case in CASES if case != "Challenge"])
def test_20_000_steps_without_c_are_the_same_to_the_last_bit(case: str) -> None:
    play_at_random(case, 640, limit=600)


def test_one_line_says_that_the_call_is_used(said: pytest.LogCaptureFixture) -> None:
    needs_the_call()
    for _ in range(2):
        env = make()
        assert type(env._stepping._calls) is NativeCalls
        env.close()
    assert [record.message for record in said.records] == ["NetHack's engines are stepped by one C call"]


def test_another_build_of_nle_is_left_to_its_own_objects(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    needs_the_call()
    monkeypatch.setattr(engine_calls, "KNOWN_BUILDS", {})
    engine_calls.unknown_build.cache_clear()
    env = make()
    engine_calls.unknown_build.cache_clear()
    assert type(env._stepping._calls) is EngineCalls
    env.close()
    (record,) = said.records
    assert "another build than those of NLE 1.3.0's wheels" in record.message


def test_buffers_that_lie_elsewhere_are_left_to_nles_own_objects(said: pytest.LogCaptureFixture) -> None:
    needs_the_call()
    env = make()
    screens = {**env._screens, "blstats": env._screens["blstats"].copy()}
    assert type(engine_calls.make_calls(env._games, screens, True)) is EngineCalls
    env.close()
    assert said.records[-1].message.endswith("does not hold the address of blstats where it should")


def test_a_field_that_never_moves_is_named_and_leaves_the_games_to_nles_own_objects(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    needs_the_call()
    reset = Game.reset

    def reset_all_but_one(game: Game, core: int, disp: int) -> bytes:
        caption = reset(game, core, disp)
        game._arrays["blstats"][7] = POISON[8]
        return caption

    env = make(3)
    with monkeypatch.context() as patch:
        patch.setattr(Game, "reset", reset_all_but_one)
        env.reset()
    assert type(env._stepping._calls) is EngineCalls
    assert not env._blstats[0, 7]
    assert said.records[-1].message.endswith("field 7 of blstats never moves")
    env.step(np.zeros(3, np.int64))
    env.close()


def test_the_fields_that_results_depend_on_move_in_random_play() -> None:
    env, rng = make(16), np.random.default_rng(0)
    env.reset()
    first = {name: env._screens[name].copy() for name in MOVING}
    moved: dict[str, set[int]] = {name: set() for name in MOVING}
    for _ in range(300):
        env.step(rng.integers(env.spec.num_actions, size=16))
        for name, array in first.items():
            moved[name].update(np.flatnonzero((env._screens[name] != array).any(axis=0)).tolist())
    env.close()
    for name, fields in MOVING.items():
        assert fields <= moved[name]


def test_deep_levels_are_the_same_to_the_last_bit() -> None:
    pair = Pair("NetHackScore-v0", {"wizard": True, **MONK}, num_envs=4, limit=1000)
    rng, deepest = np.random.default_rng(0), 0
    for level in (6, 12, 20, 27):
        pair.press(LEVEL_TELEPORT + b"%d\r" % level)
        for _ in range(40):
            deepest = max(deepest, int(pair.step(rng.integers(23, size=4)).obs["blstats"][:, DEPTH].max()))
    pair.close()
    assert deepest >= 20


@pytest.mark.parametrize("with_c", [True, False])
def test_a_step_of_a_finished_game_is_nles_own_error(with_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_c:
        needs_the_call()
    else:
        monkeypatch.setattr(engine_calls, "library", lambda: None)
    env = make(3)
    env.reset()
    env._games[1].env.nethack._pynethack.close()
    with pytest.raises(RuntimeError, match="step called without reset"):
        env._stepping.step(np.zeros(3, np.int64))
    step = env.step(np.zeros(3, np.int64))
    assert sorted(step.losses) == [0, 1, 2]
    assert env.take_errors()[0] == 1
    env.step(np.zeros(3, np.int64))
    env.close()


def test_too_few_actions_are_an_error() -> None:
    env = make(3)
    env.reset()
    with pytest.raises(ValueError):
        env._stepping.step(np.zeros(2, np.int64))
    env.close()
